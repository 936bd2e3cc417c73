"""Setting up the centre: a folder with all that it needs, and a bundle for each site."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import yaml

from fedfair.errors import ConfigError, RunError, nearest
from fedfair.federation import certificates, units
from fedfair.federation.bundle import folder_name, pack
from fedfair.federation.certificates import LINK_NAMES, Issued
from fedfair.federation.consortium import Consortium, load_consortium, slug
from fedfair.federation.files import (
    PRIVATE,
    PRIVATE_FOLDER,
    PROGRAM,
    PUBLIC,
    replace,
    whole_folder,
    write_new,
)
from fedfair.federation.keys import NodeKey, make_node_key, roster_text
from fedfair.federation.proxy import nginx_configuration
from fedfair.plain import read_yaml

CONSORTIUM = "consortium.yaml"


def init(consortium: Path, output: Path | None = None) -> Path:
    """Make the folder of a new federation and return it; it is there whole or not at all.

    Parameters
    ----------
    consortium : Path
        The consortium.yaml; a copy of it stands in the folder.
    output : Path | None
        A folder that does not exist; None: ``NAME-federation`` in the working directory.

    Raises
    ------
    ConfigError
        If the consortium is wrong.
    RunError
        If the folder exists or cannot be made.
    """
    made = load_consortium(consortium)
    target = output or Path(f"{made.name}-federation")
    with whole_folder(target, "--output") as folder:
        write_new(folder / CONSORTIUM, consortium.read_bytes())
        centre = folder / "centre"
        for sub in (centre, centre / "nodes", centre / "state", folder / "bundles"):
            sub.mkdir(mode=PRIVATE_FOLDER)
        authority = certificates.make_authority(made.name)
        _write_pair(centre, "ca", authority)
        _certify(centre, made, authority)
        write_new(centre / "nginx.conf", nginx_configuration(made).encode())
        for name, text in units.centre_files(made).items():
            write_new(centre / name, text.encode(), PROGRAM if name == "start.sh" else PUBLIC)
        keys = {site: _enter(folder, made, site) for site in made.sites}
        for site, key in keys.items():
            _hand_out(folder, made, site, key)
    return target


def add_site(folder: Path, name: str) -> Path:
    """Give one more site a key and a bundle, enter it in the folder's consortium.yaml, return the bundle.

    What others have stays as it is. The consortium.yaml comes last: after a crash, calling again
    makes a new key and a new bundle.

    Raises
    ------
    ConfigError
        If the name is wrong or taken, or the folder is none of a federation.
    """
    old = load_consortium(folder / CONSORTIUM)
    if taken := [site for site in old.sites if slug(site) == slug(name)]:
        raise ConfigError(
            f"`name` must be a new site's, got {name!r} beside {taken[0]!r}; its bundle is there"
        )
    new = dataclasses.replace(old, sites=[*old.sites, name])
    bundle = _hand_out(folder, new, name, _enter(folder, new, name))
    plain = read_yaml((folder / CONSORTIUM).read_text(encoding="utf-8"), CONSORTIUM)
    text = yaml.safe_dump(
        {**plain, "sites": list(new.sites)}, default_flow_style=None, sort_keys=False, allow_unicode=True
    )
    replace(folder / CONSORTIUM, text.encode())
    return bundle


def rekey(folder: Path, name: str) -> Path:
    """Give a site a new key, in place of one that was lost or stolen, and return its new bundle.

    A running centre turns the old key away. Sites that take part in secure sums need the new public key in
    their ``roster.txt``.

    Raises
    ------
    ConfigError
        If it is no site of the federation, or the folder is none of one.
    """
    consortium = load_consortium(folder / CONSORTIUM)
    if name not in consortium.sites:
        raise ConfigError(
            f"`site` must be one of {list(consortium.sites)}, got {name!r}{nearest(name, consortium.sites)}"
        )
    return _hand_out(folder, consortium, name, _enter(folder, consortium, name))


def renew(folder: Path) -> None:
    """Make new keys and certificates for the proxy and the SuperLink, by the same authority.

    They stand for the names that the folder's consortium.yaml has now, and the proxy's configuration
    for its ports. Sites trust the authority,
    so their bundles stay good; the centre must be started again. Interrupted, it is called again.

    Raises
    ------
    ConfigError
        If the folder is none of a federation, or the authority has expired.
    RunError
        If the authority's key is not there.
    """
    centre = folder / "centre"
    consortium = load_consortium(folder / CONSORTIUM)
    try:
        authority = Issued((centre / "ca.crt").read_bytes(), (centre / "ca.key").read_bytes())
    except OSError as error:
        raise RunError(
            f"`folder` must hold centre/ca.crt and centre/ca.key, got {folder}: {error}"
        ) from error
    _certify(centre, consortium, authority)
    replace(centre / "nginx.conf", nginx_configuration(consortium).encode())


def _certify(centre: Path, consortium: Consortium, authority: Issued) -> None:
    public = (consortium.centre.host, *consortium.centre.names)
    for stem, names in (("server", public), ("link", LINK_NAMES)):
        _write_pair(centre, stem, certificates.issue(authority, names, consortium.valid_days))


def _write_pair(centre: Path, stem: str, issued: Issued) -> None:
    replace(centre / f"{stem}.key", issued.key, PRIVATE)
    replace(centre / f"{stem}.crt", issued.certificate)


def _enter(folder: Path, consortium: Consortium, site: str) -> NodeKey:
    """Make a site's key and leave the public half with the centre."""
    key = make_node_key(folder_name(consortium, site))
    replace(folder / "centre" / "nodes" / f"{slug(site)}.pub", key.public)
    return key


def _hand_out(folder: Path, consortium: Consortium, site: str, key: NodeKey) -> Path:
    """Pack a site's bundle: there alone is its private key, beside the public ones of all who are entered."""
    bundle = folder / "bundles" / f"{slug(site)}.tar.gz"
    authority = (folder / "centre" / "ca.crt").read_bytes()
    publics = {path.stem: path.read_bytes() for path in (folder / "centre" / "nodes").glob("*.pub")}
    replace(bundle, pack(consortium, site, key, authority, roster_text(publics)), PRIVATE)
    return bundle
