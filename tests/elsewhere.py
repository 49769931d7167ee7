"""A Python outside of the checkout: its packages are this one's, but for hapo_lab."""

import json
import os
import subprocess
import sysconfig
import venv
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Elsewhere:
    """That Python, in a new virtual environment."""

    python: Path

    @property
    def site(self) -> Path:
        """Where pip puts a package."""
        site, = self.python.parent.parent.glob("lib/python3*/site-packages")
        return site

    def run(self, *arguments, program: str = "python", **options) -> subprocess.CompletedProcess:
        """It, or another program beside it, with these arguments; nothing in the environment leads to the checkout."""
        env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "HAPO_LAB_RUNS")}
        return subprocess.run([self.python.parent / program, *arguments], capture_output=True, text=True, env=env, **options)

    def kernel(self, monkeypatch) -> str:
        """The name of a Jupyter kernel in it, which a test can start from then on."""
        spec = self.python.parent.parent / "share" / "jupyter" / "kernels" / "elsewhere" / "kernel.json"
        spec.parent.mkdir(parents=True, exist_ok=True)
        spec.write_text(json.dumps({"argv": [str(self.python), "-Xfrozen_modules=off", "-m", "ipykernel_launcher", "-f",
                                             "{connection_file}"], "display_name": "Elsewhere", "language": "python"}))
        monkeypatch.setenv("JUPYTER_PATH", str(spec.parents[2]))
        for name in ("PYTHONPATH", "HAPO_LAB_RUNS"):
            monkeypatch.delenv(name, raising=False)
        return "elsewhere"


def make_elsewhere(folder: Path, without: tuple[str, ...] = ()) -> Elsewhere:
    """In a folder, and without these packages of ours either.

    Ours are links in a folder of their own: what pip finds there, it leaves alone, and hapo_lab's metadata isn't there.
    """
    venv.create(folder / "venv", symlinks=True)
    made = Elsewhere(folder / "venv" / "bin" / "python")
    (folder / "ours").mkdir()
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if not path.name.startswith(("hapo_lab", "__editable__", *without)) and path.suffix != ".pth":
            (folder / "ours" / path.name).symlink_to(path)
    (made.site / "ours.pth").write_text(f"{folder / 'ours'}\n")
    return made
