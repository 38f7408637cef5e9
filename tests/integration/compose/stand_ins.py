"""The public base images, or stand-ins of Debian's packages where no image registry is reached."""

from __future__ import annotations

import hashlib
import os
import shutil
import ssl
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.integration.compose.engine import Engine, run

PYTHON, POSTGRES = "python:3.11-slim-bookworm", "postgres:15"
_FILES = Path(__file__).parent / "stand_in_files"
_RELEASE = "bookworm"
_SECONDS = 600
# Not in the temporary folder: that may be in memory, where device files are not allowed.
_WORKSHOP = Path("/var/tmp")
# As in the public images: no documents, no caches, no waiting for the disk after each file.
_SETTINGS = {
    "etc/dpkg/dpkg.cfg.d/slim": "force-unsafe-io\n"
    + "".join(f"path-exclude /usr/share/{kind}/*\n" for kind in ("doc", "man", "locale")),
    "etc/apt/apt.conf.d/slim": 'Dir::Cache::pkgcache "";\nDir::Cache::srcpkgcache "";\n'
    'APT::Install-Recommends "false";\nAcquire::Languages "none";\n',
}
_LEFT_OUT = ("./dev/*", "./proc/*", "./sys/*", "./var/cache/apt/*", "./var/lib/apt/lists/*")


@dataclass(frozen=True)
class BaseImages:
    """Names of the images that the stack is built on."""

    python: str
    postgres: str


def missing_programs() -> str:
    """What stand-ins would need and this machine lacks; empty for nothing."""
    if os.geteuid() != 0:
        return "stand-ins for the public images can be built by root only"
    return "" if shutil.which("debootstrap") else "there is no program debootstrap"


class StandIns:
    """Gets or builds base images; what was built stays, named by the hash of what it is made of."""

    def __init__(self, engine: Engine, folder: Path) -> None:
        self._engine = engine
        self._folder = folder

    def images(self) -> BaseImages:
        """Return the names of the images; the interpreter trusts whom this machine trusts."""
        python = PYTHON if self._is_there(PYTHON) else self._of_debian("python")
        postgres = POSTGRES if self._is_there(POSTGRES) else self._of_debian("postgres")
        certificates = Path(ssl.get_default_verify_paths().cafile or ssl_bundle()).read_bytes()
        trusting = self._build(
            "certificates", {"PYTHON": python}, {"certificates.crt": certificates}
        )
        return BaseImages(trusting, postgres)

    def _is_there(self, public: str) -> bool:
        return self._engine.has_image(public) or self._engine.pull(public)

    def _of_debian(self, name: str) -> str:
        scripts = {path.name: path.read_bytes() for path in _FILES.glob(f"{name}-*")}
        return self._build(name, {"DEBIAN": self._debian()}, scripts)

    def _build(
        self, name: str, arguments: Mapping[str, str], files: Mapping[str, bytes] | None = None
    ) -> str:
        """Build an image of a file in `stand_in_files`, unless it is there already."""
        recipe = (_FILES / f"{name}.Dockerfile").read_bytes()
        image = _name(name, recipe, *arguments.values(), *(files or {}).values())
        if self._engine.has_image(image):
            return image
        context = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self._folder))
        for file, content in {"Dockerfile": recipe, **(files or {})}.items():
            (context / file).write_bytes(content)
        options = [f"--build-arg={key}={value}" for key, value in arguments.items()]
        # The machine's own network: its names and its way out are what is known to work.
        self._engine("build", "--network=host", "-t", image, *options, context, timeout=_SECONDS)
        return image

    def _debian(self) -> str:
        image = _name("debian", _RELEASE, *_LEFT_OUT, *_SETTINGS.values())
        if not self._engine.has_image(image):
            with tempfile.TemporaryDirectory(prefix="stand-in-", dir=_WORKSHOP) as folder:
                root = Path(folder) / "root"
                run(["debootstrap", "--variant=minbase", _RELEASE, root], timeout=_SECONDS)
                for file, content in _SETTINGS.items():
                    (root / file).write_text(content, encoding="ascii")
                self._import(root, image)
        return image

    def _import(self, root: Path, image: str) -> None:
        left_out = [f"--exclude={pattern}" for pattern in _LEFT_OUT]
        with subprocess.Popen(["tar", "-C", root, *left_out, "-c", "."], stdout=-1) as tar:
            command = [self._engine.docker, "import", "-", image]
            subprocess.run(command, stdin=tar.stdout, capture_output=True, check=True)


def ssl_bundle() -> str:
    """Where Debian and Ubuntu keep the certificates that are trusted."""
    return "/etc/ssl/certs/ca-certificates.crt"


def _name(name: str, *ingredients: str | bytes) -> str:
    parts = [part if isinstance(part, bytes) else part.encode() for part in ingredients]
    digest = hashlib.sha256(b"\0".join(parts)).hexdigest()
    return f"stabilizer-stand-in/{name}:{digest[:12]}"
