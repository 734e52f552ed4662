"""Four small photographs that every exported file is tried on; `LICENCES.md` says whose they are."""
