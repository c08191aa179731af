"""What ``from fanoise_lightning.callbacks import FANoise`` costs beyond ``import lightning.pytorch``.

    python benchmarks/import_time.py [--repeats 7]

Fresh processes, interleaved; medians in seconds.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys

STATEMENTS = {
    "import lightning.pytorch": "import lightning.pytorch",
    "... FANoise after it": "import lightning.pytorch; from fanoise_lightning.callbacks import FANoise",
}


def seconds(statement: str) -> float:
    code = f"import time; start = time.perf_counter(); {statement}; print(time.perf_counter() - start)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    for statement in STATEMENTS.values():
        seconds(statement)  # fill the disk cache
    times = [[seconds(statement) for statement in STATEMENTS.values()] for _ in range(repeats)]
    medians = [statistics.median(column) for column in zip(*times)]
    for name, value in zip(STATEMENTS, medians):
        print(f"{name:28} {value:6.2f} s")
    difference = statistics.median(after - before for before, after in times)
    print(f"{'difference':28} {difference:6.2f} s")


if __name__ == "__main__":
    main()
