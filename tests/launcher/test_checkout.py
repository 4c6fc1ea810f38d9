"""What of a checkout goes to a cluster, and what is said about it."""

from __future__ import annotations

import subprocess
import zipfile
from pathlib import Path

import pytest

from launcher.checkout import read_checkout
from launcher.errors import UserError


def git(root: Path, *words: str) -> None:
    who = ["-c", "user.name=t", "-c", "user.email=t@t", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", str(root), *who, *words], check=True, capture_output=True)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    made = tmp_path / "checkout"
    (made / "launcher").mkdir(parents=True)
    for name, text in {
        "a.py": "a",
        "gone.py": "g",
        "launcher/b.py": "b",
        ".gitignore": "runs/\n",
        "s.pem": "k",
    }.items():
        (made / name).write_text(text)
    git(made, "init", "-q")
    git(made, "add", ".")
    git(made, "commit", "-q", "-m", "first")
    return made


def test_a_clean_checkout_is_its_commit(root: Path) -> None:
    found = read_checkout(root)
    assert found.commit is not None and len(found.commit) == 40
    assert found.describe() == f"commit {found.commit[:12]}" and found.left_out == ()


def test_uncommitted_files_go_too_and_are_named_but_no_secrets_nor_ignored_ones(root: Path, tmp_path: Path) -> None:
    (root / "a.py").write_text("changed")
    (root / "launcher" / "new file.py").write_text("new")
    (root / "gone.py").unlink()
    (root / "runs").mkdir()
    (root / "runs" / "big").write_text("x")
    secrets = (
        *(".env", ".kube/config", ".npmrc", ".pypirc", "id_ed25519", "key.json", "kubeconfig"),
        *("launcher/aws-credentials.json", "my_token.txt", "passwords.txt", "secrets.py", "service-account.json"),
    )
    for name in secrets:
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text("secret")
    (root / "launcher" / "tokens_of_text.py").write_text("code")
    (tmp_path / "outside").write_text("secret")
    (root / "link").symlink_to(tmp_path / "outside")
    found = read_checkout(root)
    assert found.changed == ("a.py", "gone.py", "launcher/new file.py", "launcher/tokens_of_text.py", "link")
    assert "with uncommitted changes in 5 files: a.py, gone.py, launcher/new file.py, " in found.describe()
    assert found.left_out == secrets
    package = tmp_path / "package.zip"
    found.pack(package, {".trestle-job/recipe.yaml": "run: {}"})
    with zipfile.ZipFile(package) as archive:
        files = {name: archive.read(name).decode() for name in archive.namelist()}
    assert files == {
        ".gitignore": "runs/\n",
        ".trestle-job/recipe.yaml": "run: {}",
        "a.py": "changed",
        "launcher/b.py": "b",
        "launcher/new file.py": "new",
        "launcher/tokens_of_text.py": "code",
        "s.pem": "k",
    }
    again = tmp_path / "again.zip"
    found.pack(again, {".trestle-job/recipe.yaml": "run: {}"})
    assert again.read_bytes() == package.read_bytes()


def test_installed_packages_go_as_they_are(tmp_path: Path) -> None:
    for name in ("launcher/cli.py", "launcher/recipes/demo.yaml", "launcher/__pycache__/cli.pyc", "torch/big.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    found = read_checkout(tmp_path)
    assert found.files == ("launcher/cli.py", "launcher/recipes/demo.yaml")
    assert found.describe() == "the installed packages (no git checkout)"


def test_a_checkout_that_git_cannot_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / ".git").write_text("gitdir: nowhere")
    with pytest.raises(UserError, match="git cannot read the checkout"):
        read_checkout(tmp_path)
