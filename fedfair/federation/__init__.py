"""Training between hospitals on real machines: who runs what, and how it is set up.

The *centre* runs Flower's SuperLink, a proxy before it and the ServerApp. Each *site* runs a
SuperNode and the ClientApp. Sites only call out: one TLS connection to one port of the centre.

1. `fedfair federation init consortium.yaml` (centre) makes a folder: an authority that signs the
   certificates, the proxy's configuration, and for each site a key and a *bundle*. A bundle holds
   the site's private key, which is nowhere else: hand it over as you would a password, then
   delete it.
2. `fedfair site join BUNDLE --data PATH` (site) checks the bundle, keeps the hospital's own
   settings in `site.yaml`, and connects.
3. `fedfair site approve HASH` (site) names the code that may run there. Nothing else does.
4. `fedfair federation start FOLDER` (centre) runs the SuperLink and the proxy, and
   `fedfair submit CONFIG --federation FOLDER` an experiment on all sites.

Why a proxy: the SuperLink answers its users, its sites and its own programs on one port, and asks
its users for no password; who reaches that port may run code at every site. So it listens on the
centre's loopback alone, and the proxy passes the sites' calls and nothing else.

===============  ==========================================================================
`consortium`     what the centre decides, in one YAML
`certificates`   the authority and what it signs
`keys`           the key pair by which the SuperLink knows a site
`proxy`          the configuration of nginx, and how it is started
`settings`       a site's own settings, as its bundle starts with them
`units`          what starts the centre and a site: shell, Docker, systemd; a page for IT
`bundle`         packing one, and opening one that may be hostile
`centre`         init, add_site, renew
`join`, `doctor` a site's start, and the checks before it
`approval`       the code that a site has approved
`gate`           stands at the site before Flower's own programs, and lets nothing else run
===============  ==========================================================================
"""
