"""The archives that a release would publish: `make release-check`. They are built, read, installed and used.

The sdist must hold what Git tracks, the wheel what it tracks of the package, and neither a path of this machine. Each
is installed in an environment of its own, outside the checkout, where smoke.py uses it.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
METADATA = {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE"}


def run(*command: str | Path, cwd: Path = ROOT) -> str:
    """What a command prints; this run ends with its output where it fails."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))} fails:\n{done.stdout}{done.stderr}")
    return done.stdout


def content(archive: Path) -> dict[str, bytes]:
    """The files of a wheel or an sdist, by their names below the folder that an sdist has for all of them."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            return {name: wheel.read(name) for name in wheel.namelist()}
    with tarfile.open(archive) as sdist:
        files = [member for member in sdist if member.isfile()]
        return {member.name.partition("/")[2]: sdist.extractfile(member).read() for member in files}


def expected(archive: Path, tracked: set[str]) -> set[str]:
    """The names of the files that an archive should have. `tracked`: the files that Git has."""
    if archive.suffix != ".whl":
        return tracked | {"PKG-INFO"}
    info = f"{'-'.join(archive.name.split('-')[:2])}.dist-info"
    return {name for name in tracked if name.startswith("relay_hf/")} | {f"{info}/{name}" for name in METADATA}


def faults(archive: Path, tracked: set[str], private: set[str]) -> list[str]:
    """What an archive lacks, has too much, or tells of this machine. `private`: paths that no file may name."""
    found, names = content(archive), expected(archive, tracked)
    lines = [f"{archive.name} lacks {name}" for name in sorted(names - found.keys())]
    lines += [
        f"{archive.name} has {name}, which is not one of its files that Git tracks"
        for name in sorted(found.keys() - names)
    ]
    for name, data in sorted(found.items()):
        lines += [f"{name} of {archive.name} names {path}" for path in sorted(private) if path.encode() in data]
    return lines


def used(archive: Path, folder: Path) -> str:
    """What smoke.py prints of an archive that is installed in an environment of its own, in `folder`.

    The environment borrows all other packages, and the build backend, from the one that runs this. A path file lends
    them, from which the checkout's editable install is not followed.
    """
    venv.create(folder / "venv", with_pip=False)
    python = folder / "venv/bin/python"
    own = run(python, "-c", 'import sysconfig; print(sysconfig.get_path("purelib"))').strip()
    lent = [sysconfig.get_path("purelib"), *(path for path in sys.path if path.endswith("site-packages"))]
    (Path(own) / "dependencies.pth").write_text("\n".join(dict.fromkeys(lent)) + "\n", encoding="utf-8")
    # Of what is lent pip sees the editable relay_hf too, and leaves it as it is.
    options = ("--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--ignore-installed")
    run(python, "-m", "pip", "install", *options, archive)
    (folder / "smoke.py").write_bytes((ROOT / ".ci/smoke.py").read_bytes())
    return run(python, "-I", "smoke.py", cwd=folder)


def main() -> None:
    """Check both archives, and say what they are."""
    tracked = set(run("git", "ls-files").splitlines())
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder) / "dist"
        run(sys.executable, "-m", "build", "--no-isolation", "--outdir", built)
        archives = sorted(built.iterdir())
        if [archive.name.endswith((".whl", ".tar.gz")) for archive in archives] != [True, True]:
            sys.exit(f"a build gives a wheel and an sdist; this one gave {[each.name for each in archives]}")
        run(sys.executable, "-m", "twine", "check", "--strict", *archives)
        private = {f"{ROOT}/", f"{Path.home()}/"} - {"//"}  # of a home that is the root; every URL has it
        if wrong := [line for archive in archives for line in faults(archive, tracked, private)]:
            sys.exit("\n".join(wrong))
        for archive in archives:
            place = Path(folder) / archive.name.rpartition(".")[2]
            place.mkdir()
            print(f"{archive.name}: {len(content(archive))} files, {archive.stat().st_size / 2**20:.1f} MiB")
            print(used(archive, place), end="")


if __name__ == "__main__":
    main()
