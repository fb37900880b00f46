"""A private Redis under the users that `helm/policies` ships."""

from __future__ import annotations

import re
from hashlib import sha256
from pathlib import Path

import redis

from producer.process import Process, free_port
from tests.servers.redis import server_binary

POLICIES = Path(__file__).parents[2] / "helm" / "policies"
ROLES = ("sdk", "worker", "dispatcher")


class Guarded:
    """A real server with the file's users, their passwords their names, and a tester who may read its log."""

    def __init__(self, folder: Path, binary: str):
        rules = (POLICIES / "redis-users.acl").read_text()
        for role in ROLES:
            rules = re.sub(rf"(user {role} .*#)0{{64}}", rf"\g<1>{sha256(role.encode()).hexdigest()}", rules)
        (folder / "users.acl").write_text(rules + "user tester on >tester ~* &* +@all\n")
        self.port = free_port()
        command = [server_binary(binary), "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(folder)]
        self._process = Process([*command, "--save", "", "--aclfile", str(folder / "users.acl")], folder / "log")
        self.tester = self.client("tester")
        self._process.wait_until(self._answers, 20)

    def _answers(self) -> bool:
        try:
            return bool(self.tester.ping())
        except redis.ConnectionError:
            return False

    def url(self, role: str) -> str:
        return f"redis://{role}:{role}@127.0.0.1:{self.port}/0"

    def client(self, role: str) -> redis.Redis:
        return redis.Redis.from_url(self.url(role), decode_responses=True, socket_timeout=10)

    def refusals(self) -> set[tuple[str, str, str]]:
        """(role, reason, object) of what was refused since the last call; what a client library tries and does
        without is left out."""
        entries = self.tester.acl_log()
        self.tester.acl_log_reset()
        found = {(entry["username"], entry["reason"], entry["object"]) for entry in entries}
        return {entry for entry in found if not entry[2].startswith(("client|", "hello"))}

    def stop(self) -> None:
        self._process.stop()
