"""Bundles altered in every way: `python tests/endurance/tamper.py [--spread 500]`

Alters a small bundle in every bit, at every length and byte, the packaged one in every bit of its manifest and card and
in a spread of bits over its networks; every field of the manifest; external data however it is written. Prints a row a
kind: how many were tried, refused in one line that names the file, refused otherwise, ended in another error, opened.
Ends in 1 where anything but the first two columns of counts is not 0.
"""

import argparse
import copy
import json
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from conftest import write_bundle
from support.altered_bundles import altered, seal, tiny_graph
from test_hostile_graphs import external
from test_manifest_fields import PLACES, VALUES, allowed, full
from test_tampering import FILES

from organ_infer import BundleError
from organ_infer.bundle.files import Manifest, open_bundle, packaged_bundle
from organ_infer.bundle.onnx_graph import check_graph

KINDS = ("refused", "unnamed", "crashed", "opened")


def outcome(action, name: str) -> str:
    try:
        action()
    except BundleError as e:
        return "refused" if name in str(e) and "\n" not in str(e) else "unnamed"
    except Exception:
        return "crashed"
    return "opened"


def files(bundle: Path, name: str, others: Iterable[bytes]) -> Iterator[str]:
    """What comes of the bundle with each of `others` in a file's place."""
    path = bundle / name
    data = path.read_bytes()
    for other in others:
        if other != data:
            path.write_bytes(other)
            yield outcome(lambda: open_bundle(bundle), name)
    path.write_bytes(data)
    open_bundle(bundle)


def bits(bundle: Path, name: str, count: int) -> Iterator[str]:
    """What comes of `count` single bits turned, in place, for the file is large."""
    rng = random.Random(name)
    with (bundle / name).open("r+b", buffering=0) as file:
        size = file.seek(0, 2)
        for _ in range(count):
            at, bit = rng.randrange(size), rng.randrange(8)
            file.seek(at)
            byte = file.read(1)[0]
            for value, tried in ((byte ^ 1 << bit, True), (byte, False)):
                file.seek(at)
                file.write(bytes([value]))
                if tried:
                    yield outcome(lambda: open_bundle(bundle), name)
    open_bundle(bundle)


def fields() -> Iterator[str]:
    for *way, last in PLACES:
        for value in (value for values in VALUES.values() for value in values):
            if allowed((*way, last), value):
                continue
            changed = copy.deepcopy(full())
            inside = changed
            for key in way:
                inside = inside[key]
            inside[last] = value
            text = json.dumps(changed)
            yield outcome(lambda text=text: Manifest.from_json(text), "manifest.json")


def hidden() -> Iterator[str]:
    for how in [{"length": n} for n in range(1, 11)] + [{"more": n << 32} for n in range(1, 8)]:
        for location in ("w.bin", "../w.bin", "/etc/passwd"):
            data = external(location, **how)
            yield outcome(
                lambda data=data: check_graph(
                    data, where="g", size=28, classes=11, output="logits"
                ),
                "g",
            )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--spread", type=int, default=500, help="bits turned in each packaged network"
    )
    options = parser.parse_args()
    memory = (
        "/dev/shm" if Path("/dev/shm").is_dir() else None
    )  # tens of thousands of files are written
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        tiny = seal(write_bundle(Path(folder, "tiny"), {"tiny.onnx": tiny_graph()}))
        packaged = Path(shutil.copytree(packaged_bundle(), Path(folder, "packaged")))
        rows = {
            f"small bundle, {name}: every bit, length, byte": files(
                tiny, name, altered((tiny / name).read_bytes())
            )
            for name in FILES
        }
        for path in sorted(packaged.iterdir()):
            if path.suffix == ".onnx":
                rows[f"packaged, {path.name}: bits turned"] = bits(
                    packaged, path.name, options.spread
                )
            else:
                rows[f"packaged, {path.name}: every bit, length, byte"] = files(
                    packaged, path.name, altered(path.read_bytes())
                )
        rows["manifest: every field absent of its type or range"] = fields()
        rows["external data, however written"] = hidden()
        print(f"{'':<60}{'tried':>8}" + "".join(f"{kind:>9}" for kind in KINDS) + f"{'seconds':>9}")
        wrong = 0
        for row, outcomes in rows.items():
            begun = time.perf_counter()
            found = Counter(outcomes)
            counts = "".join(f"{found[kind]:>9,}" for kind in KINDS)
            print(
                f"{row:<60}{found.total():>8,}{counts}{time.perf_counter() - begun:>9.1f}",
                flush=True,
            )
            wrong += found.total() - found["refused"]
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
