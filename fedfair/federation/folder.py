"""A site's folder, as it was unpacked from its bundle: what lies where."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fedfair.errors import ConfigError
from fedfair.plain import read_yaml

SETTINGS = "site.yaml"
PROGRAMS = "bin"
"""Folder of the programs that stand before Flower's own on the PATH of the SuperNode."""


@dataclass(frozen=True)
class SiteFolder:
    """A site's folder and its settings.

    Attributes
    ----------
    root : Path
        The folder, absolute.
    settings : Mapping[str, object]
        What ``site.yaml`` holds, as it is: `fedfair.privacy.policy` judges it.
    """

    root: Path
    settings: Mapping[str, object]

    @classmethod
    def read(cls, root: Path) -> SiteFolder:
        """Read a site's folder.

        Raises
        ------
        ConfigError
            If it holds no readable ``site.yaml`` or that does not name the site.
        """
        path = root / SETTINGS
        try:
            settings = read_yaml(path.read_text(encoding="utf-8"), str(path))
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"the site's folder must hold a readable {SETTINGS}, got {str(root)!r} ({error}); "
                "name the folder that was unpacked from the bundle"
            ) from error
        name = settings.get("site") if isinstance(settings, Mapping) else None
        if not isinstance(name, str) or not name:
            raise ConfigError(f"`site` in {path} must name the site, got {name!r}; take it from the bundle")
        return cls(root.resolve(), settings)

    @property
    def name(self) -> str:
        """The site's name in the consortium."""
        return str(self.settings["site"])

    @property
    def settings_file(self) -> Path:
        """The hospital's own settings."""
        return self.root / SETTINGS

    @property
    def audit(self) -> Path:
        """The audit log."""
        return self._place("audit", "audit.jsonl")

    @property
    def ledger(self) -> Path:
        """The folder of the privacy ledgers."""
        return self._place("ledger", "ledgers")

    @property
    def home(self) -> Path:
        """Where Flower keeps what it installs."""
        return self.root / "flwr"

    @property
    def centre(self) -> tuple[str, int]:
        """Host and port at which the centre listens.

        Raises
        ------
        ConfigError
            If they are not written as ``host:port``.
        """
        host, _, port = str(self.settings.get("centre")).rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise ConfigError(f"`centre` must be host:port, got {self.settings.get('centre')!r}")
        return host.strip("[]"), int(port)

    def _place(self, key: str, default: str) -> Path:
        return self.root / str(self.settings.get(key) or default)
