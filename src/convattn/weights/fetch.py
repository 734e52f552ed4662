"""Getting the authors' files: from a folder, from the cache, or from where they were released."""

import os
import sys
from http import HTTPStatus
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import torch.hub

from convattn.weights.read import CheckpointError
from convattn.weights.records import OfficialWeights

__all__ = ["fetch_official", "weights_folder"]


def fetch_official(weights: OfficialWeights, cache_dir: str | Path | None = None) -> Path:
    """The path of an official file on this machine, downloaded with a progress bar if it is not there yet.

    Looked for in the folder that the environment variable `CONVATTN_WEIGHTS` names, then in the cache (`cache_dir`, or
    torch.hub's `checkpoints`), then fetched (from its mirror if it has one). A download counts only when it is as
    long as the server said and its SHA-256 agrees with the recorded one, where one is recorded; otherwise nothing is
    kept.

    Raises:
        CheckpointError: if the file is nowhere to be had, in one line that says where it was looked for.
    """
    mirrored = Path(weights.file_name).stem + Path(urlsplit(weights.mirror).path).suffix  # may be another format
    names = [weights.file_name, mirrored] if weights.mirror else [weights.file_name]
    cache = Path(cache_dir or _hub_folder())
    folder = os.environ.get("CONVATTN_WEIGHTS")
    for place in [Path(folder), cache] if folder else [cache]:
        for name in names:
            if (place / name).is_file():
                return place / name
    if weights.by_hand:
        raise CheckpointError(
            f"{weights.url}: not a direct download; fetch {weights.file} there by hand and set "
            f"CONVATTN_WEIGHTS to its folder, or pass pretrained_path"
        )

    address, name = weights.mirror or weights.url, names[-1]
    cached = cache / name
    cached.parent.mkdir(parents=True, exist_ok=True)
    arriving = cached.with_name(f"{name}.{os.getpid()}.arriving")
    try:
        expected = _content_length(address)
        torch.hub.download_url_to_file(
            address, str(arriving), weights.sha256, progress=sys.stderr is not None and sys.stderr.isatty()
        )
        received = arriving.stat().st_size
        if expected is not None and received != expected:
            raise CheckpointError(f"{address}: the connection was cut after {received} of {expected} bytes")
        os.replace(arriving, cached)
    except (HTTPException, OSError, RuntimeError) as error:  # a URLError is an OSError
        if isinstance(error, HTTPError):
            error.close()  # it holds the connection
        reason = str(getattr(error, "reason", error)).splitlines()[0]
        raise CheckpointError(
            f"{address}: could not be downloaded ({reason}); fetch {name} by other means and set "
            f"CONVATTN_WEIGHTS to its folder, or pass pretrained_path"
        ) from None
    finally:
        arriving.unlink(missing_ok=True)
    return cached


def weights_folder() -> Path:
    """Where files fetched by hand belong: the folder that `CONVATTN_WEIGHTS` names, or torch.hub's `checkpoints`."""
    return Path(os.environ.get("CONVATTN_WEIGHTS") or _hub_folder())


def _hub_folder() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints"


def _content_length(url: str) -> int | None:
    """What the server says the file's length is; None where it does not, or answers no question but for the file."""
    request = Request(url, method="HEAD", headers={"User-Agent": "convattn"})
    try:
        with urlopen(request, timeout=30) as response:
            length = response.headers.get("Content-Length")
    except HTTPError as error:
        error.close()
        if error.code in (HTTPStatus.FORBIDDEN, HTTPStatus.METHOD_NOT_ALLOWED, HTTPStatus.NOT_IMPLEMENTED):
            return None  # signed addresses are often good for GET alone
        raise
    return None if length is None else int(length)
