"""Does anything stay behind? `python tests/endurance/many_classifiers.py [--count 2000] [--bundle DIR]`

Opens, uses and closes a classifier again and again, each seventh one only dropped, a thread in each fifth. Prints threads,
descriptors and resident memory as it goes, and ends in 1 where threads or descriptors grow at all, or memory by more than
5 % after the first tenth.
"""

import argparse
import gc
import os
import sys
import threading
import time

import numpy as np

from organ_infer import OrganClassifier


def held() -> tuple[int, int, float]:
    """Threads, descriptors, resident MiB."""
    gc.collect()
    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[1])
    memory = pages * os.sysconf("SC_PAGE_SIZE") / 2**20
    return len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd")), memory


def once(i: int, bundle: str | None, slices: np.ndarray, expected: list) -> None:
    opened = OrganClassifier(bundle, device="cpu", threads=1 + i % 3)
    found: list = []
    if i % 5 == 0:
        thread = threading.Thread(target=lambda: found.append(opened.predict_proba(slices)))
        thread.start()
        thread.join()
    else:
        found.append(opened.predict_proba(slices))
    if not expected:
        expected.append(found[0])
    np.testing.assert_allclose(found[0], expected[0], atol=1e-5)
    if i % 7:
        opened.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--bundle")
    options = parser.parse_args()
    slices = np.random.default_rng(0).integers(0, 256, (16, 28, 28), np.uint8)
    expected: list = []
    print(f"{'opened':>8}{'threads':>9}{'files':>7}{'MiB':>8}{'seconds':>9}")
    begun, rows = time.perf_counter(), []
    for i in range(options.count + 1):
        if i % max(1, options.count // 10) == 0:
            time.sleep(0.3)  # the workers of a closed ensemble end by themselves
            rows.append(held())
            threads, files, memory = rows[-1]
            print(
                f"{i:>8,}{threads:>9}{files:>7}{memory:>8.1f}{time.perf_counter() - begun:>9.1f}",
                flush=True,
            )
        once(i, options.bundle, slices, expected)
    first, last = rows[1], rows[-1]
    flat = last[:2] == first[:2] and last[2] <= 1.05 * first[2]
    print("flat" if flat else "grows")
    return 0 if flat else 1


if __name__ == "__main__":
    sys.exit(main())
