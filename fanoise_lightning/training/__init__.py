"""How an encoder is trained: large batches, shards, checkpoints, schedules."""
