"""What ``from fanoise_lightning.callbacks import FANoise`` costs beyond ``import lightning.pytorch``.

    python benchmarks/import_time.py [--repeats 7]

Fresh processes, interleaved; medians in seconds.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.figures import Figure, add_options, write

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
    add_options(parser)
    options = parser.parse_args()
    for statement in STATEMENTS.values():
        seconds(statement)  # fill the disk cache
    times = [[seconds(statement) for statement in STATEMENTS.values()] for _ in range(options.repeats)]
    medians = [statistics.median(column) for column in zip(*times)]
    for name, value in zip(STATEMENTS, medians):
        print(f"{name:28} {value:6.2f} s")
    differences = sorted(after - before for before, after in times)
    difference = statistics.median(differences)
    print(f"{'difference':28} {difference:6.2f} s ({differences[0]:.2f} to {differences[-1]:.2f})")
    name = "import of FANoise beyond lightning.pytorch"
    write([Figure(name, difference, "s", differences[0], differences[-1], at_most=0.1)], options.json)


if __name__ == "__main__":
    main()
