"""The API server of the cluster that a pod runs in: what the pod's own ServiceAccount may ask of it.

Spoken to by plain HTTPS with the token that Kubernetes mounts, so that nothing is to be installed for it.
"""

from __future__ import annotations

import json
import os
import ssl
from collections.abc import Iterator, Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote, urlencode
from urllib.request import HTTPSHandler, ProxyHandler, Request, build_opener

MOUNTED = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_PAGE = 500
_TIMEOUT_SECONDS = 10.0


class Pods:
    """The pods of this pod's namespace. Every method raises OSError: not there, not allowed, no answer in time."""

    def __init__(self, url: str, folder: Path):
        """`folder` holds token, namespace and ca.crt."""
        self._folder = folder
        self._root = f"{url}/api/v1/namespaces/{quote((folder / 'namespace').read_text().strip())}/pods"
        trusted = ssl.create_default_context(cafile=str(folder / "ca.crt"))
        # No proxy: the environment's leads out of the cluster.
        self._opener = build_opener(ProxyHandler({}), HTTPSHandler(context=trusted))

    @classmethod
    def here(cls, folder: Path = MOUNTED) -> Self | None:
        """Of the cluster that this process runs in; None outside of one, or where no token is mounted."""
        host, port = os.environ.get("KUBERNETES_SERVICE_HOST"), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
        if not host or not (folder / "token").exists():
            return None
        return cls(f"https://{f'[{host}]' if ':' in host else host}:{port}", folder)

    def get(self, name: str) -> dict[str, Any]:
        """One pod."""
        return self._ask("GET", f"/{quote(name)}")

    def list(self, labels: Mapping[str, str]) -> Iterator[dict[str, Any]]:
        """Pods that have all these labels."""
        query = {"labelSelector": ",".join(f"{name}={value}" for name, value in labels.items()), "limit": str(_PAGE)}
        while True:
            page = self._ask("GET", f"?{urlencode(query)}")
            yield from page["items"] or ()
            query["continue"] = page.get("metadata", {}).get("continue", "")
            if not query["continue"]:
                return

    def annotate(self, name: str, annotations: Mapping[str, str]) -> None:
        """Set these annotations of a pod; its others stay."""
        patch = {"metadata": {"annotations": dict(annotations)}}
        self._ask("PATCH", f"/{quote(name)}", json.dumps(patch).encode(), "application/merge-patch+json")

    def _ask(self, method: str, path: str, body: bytes | None = None, kind: str = "application/json") -> dict[str, Any]:
        token = (self._folder / "token").read_text().strip()  # read anew: Kubernetes changes it every hour
        headers = {"Authorization": f"Bearer {token}", "Accept": "application/json", "Content-Type": kind}
        request = Request(self._root + path, data=body, headers=headers, method=method)
        try:
            with self._opener.open(request, timeout=_TIMEOUT_SECONDS) as answer:
                found: dict[str, Any] = json.load(answer)
        except HTTPException as error:
            raise OSError(f"the API server's answer was cut off: {error!r}") from None
        except ValueError as error:
            raise OSError(f"the API server's answer is no JSON: {error}") from None
        return found
