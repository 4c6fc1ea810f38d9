"""The code that goes with a job: the files of this checkout as they are now, committed or not, in one zip."""

from __future__ import annotations

import fnmatch
import subprocess
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from launcher.errors import EnvironmentFailure, UserError

ROOMS = ("cluster", "data_pipeline", "launcher", "modeling", "training")
SECRETIVE = (
    ".env", ".env.*", "*.pem", "*.key", "*.p12", "*.pfx", "id_rsa*", "id_ed25519*", ".netrc", ".pgpass", "*credential*",
    "*secret*", "*token", "*token.txt", "*_token*", "auth_token*", "*password*", "*passwd*", "*.p8", "*.ppk", "*.jks",
    "*.keystore", "*.kdbx", "id_ecdsa*", "id_dsa*", ".npmrc", ".pypirc", ".s3cfg", ".boto", ".dockercfg", "rclone.conf",
    "kubeconfig*", "*.kubeconfig", "*service-account*", "*service_account*", "*serviceaccount*", "key.json",
    "*-key.json", "*_key.json", "keys.json",
)  # fmt: skip
"""Names that files with secrets have. Those in the commit are known to all who have it; others are left out."""
SECRETIVE_FOLDERS = frozenset((".aws", ".azure", ".docker", ".gnupg", ".kube", ".ssh", ".secrets", "secrets"))
"""Likewise, of folders with all that is in them."""
CODE = (*ROOMS, "tests")
"""Where a `.py` file is code whatever its name."""

NAMES_SHOWN = 5
EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest that a zip knows: equal files make equal zips


@dataclass(frozen=True)
class Checkout:
    """What would be shipped. Paths are relative to `root`."""

    root: Path
    commit: str | None
    """None where there is no git: an installed package."""
    files: tuple[str, ...]
    changed: tuple[str, ...]
    """Files that differ from the commit, or that it does not have, or that are gone."""
    left_out: tuple[str, ...] = ()
    """Uncommitted files that look like secrets."""

    def describe(self) -> str:
        """`commit 1a2b3c4d with uncommitted changes in 2 files: a.py, b.py`."""
        if self.commit is None:
            return "the installed packages (no git checkout)"
        if not self.changed:
            return f"commit {self.commit[:12]}"
        names = ", ".join(self.changed[:NAMES_SHOWN]) + (", …" if len(self.changed) > NAMES_SHOWN else "")
        count = "1 file" if len(self.changed) == 1 else f"{len(self.changed)} files"
        return f"commit {self.commit[:12]} with uncommitted changes in {count}: {names}"

    def pack(self, target: Path, extra: Mapping[str, str]) -> None:
        """Write the files, and `extra` (path → text) beside them, as the zip `target`. Raises EnvironmentFailure."""
        try:
            with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
                for name in self.files:
                    _add(archive, name, (self.root / name).read_bytes())
                for name, text in sorted(extra.items()):
                    _add(archive, name, text.encode())
        except OSError as error:
            raise EnvironmentFailure(f"{error.filename or target} cannot be packed: {error.strerror}") from error

    def largest(self, count: int = 3) -> list[tuple[str, int]]:
        """The largest files with their sizes in bytes, for saying what makes the package too large."""
        sizes = sorted(((self.root / name).stat().st_size, name) for name in self.files)
        return [(name, size) for size, name in reversed(sizes[-count:])]


def read_checkout(root: Path | None = None) -> Checkout:
    """The checkout at `root`; None: the one that this program runs from.

    Tracked files as they are on the disk, and untracked ones that git does not ignore. Links that lead outside, and
    folders of submodules, stay behind. Raises UserError when git fails.
    """
    root = Path(__file__).resolve().parents[1] if root is None else root
    if not (root / ".git").exists():
        files = [str(p.relative_to(root)) for room in ROOMS for p in (root / room).rglob("*") if p.is_file()]
        return Checkout(root, None, tuple(sorted(name for name in files if "__pycache__" not in name)), ())
    tracked = _git(root, "ls-files", "-z", "--cached")
    new = _git(root, "ls-files", "-z", "--others", "--exclude-standard")
    secrets = [name for name in new if _looks_secret(name)]
    kept_new = [name for name in new if name not in set(secrets)]
    commit = _git(root, "rev-parse", "HEAD")[0].strip()
    changed = {*_git(root, "diff", "--name-only", "-z", "--relative", "HEAD"), *kept_new}
    files = sorted(name for name in {*tracked, *kept_new} if _is_ours(root, name))
    return Checkout(root, commit, tuple(files), tuple(sorted(changed)), tuple(secrets))


def _git(root: Path, *words: str) -> list[str]:
    try:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise UserError(f"{root} is a git checkout, but there is no git to read it with: install git") from None
    if done.returncode:
        raise UserError(f"git cannot read the checkout {root}: {' '.join(done.stderr.split())[:200]}")
    return [name for name in done.stdout.split("\0") if name]


def _looks_secret(name: str) -> bool:
    *folders, last = name.lower().split("/")
    if last.endswith(".py") and folders and folders[0] in CODE:
        return False
    return bool(SECRETIVE_FOLDERS.intersection(folders)) or any(fnmatch.fnmatch(last, one) for one in SECRETIVE)


def _is_ours(root: Path, name: str) -> bool:
    path = root / name
    return path.is_file() and path.resolve().is_relative_to(root.resolve())


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    info = zipfile.ZipInfo(name, EPOCH)
    info.compress_type = zipfile.ZIP_DEFLATED
    info.external_attr = 0o644 << 16
    archive.writestr(info, content)
