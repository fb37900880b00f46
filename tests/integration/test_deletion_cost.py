"""Which workers scale-in takes first: the dispatcher's marks, against a server that speaks as Kubernetes' does."""

import json
from collections.abc import Callable
from urllib.parse import parse_qs, urlsplit

import pytest

from farm import keys
from farm.dispatcher.deletion_cost import BUSY, COST, IDLE, DeletionCost
from farm.dispatcher.lead import Lead
from farm.kubernetes import Pods
from farm.ledger import Batches, JobRef, Ledger, Window, connect
from tests.servers.certificate import certified, serving
from tests.servers.scripted import Answer, scripted

PODS = "/api/v1/namespaces/farm/pods"
RELEASE = {"app.kubernetes.io/instance": "shop"}


class Cluster:
    """The pods of a namespace, as the API server tells and changes them; two a page."""

    def __init__(self):
        self.annotations: dict[str, dict[str, str]] = {"worker-a": {"other": "kept"}, "worker-b": {}, "worker-c": {}}
        self.status, self.patches, self.tokens, self.selectors = 200, [], set(), set()
        self.before_patch: Callable[[str], None] = lambda name: None

    def answer(self, request):
        self.tokens.add(request.headers["authorization"])
        path, query = urlsplit(request.path).path, parse_qs(urlsplit(request.path).query)
        if self.status != 200:
            return told({"kind": "Status"}, self.status)
        if request.method == "PATCH":
            assert request.headers["content-type"] == "application/merge-patch+json"
            return self.patched(path.removeprefix(f"{PODS}/"), json.loads(request.body))
        if path == f"{PODS}/dispatcher-1":
            return told({"metadata": {"name": "dispatcher-1", "labels": {**RELEASE, "pod-template-hash": "7d9"}}})
        assert path == PODS
        self.selectors.add(query["labelSelector"][0])
        begin = int(query.get("continue", ["0"])[0])
        names = sorted(self.annotations)[begin : begin + 2]
        more = str(begin + 2) if begin + 2 < len(self.annotations) else ""
        items = [{"metadata": {"name": name, "annotations": self.annotations[name]}} for name in names]
        return told({"items": items, "metadata": {"continue": more}})

    def patched(self, name, patch):
        self.before_patch(name)
        if name not in self.annotations:
            return told({"kind": "Status"}, 404)
        assert patch.keys() == {"metadata"} and patch["metadata"].keys() == {"annotations"}
        self.patches.append((name, patch["metadata"]["annotations"]))
        self.annotations[name].update(patch["metadata"]["annotations"])
        return told({})


def told(content, status=200):
    body = json.dumps(content).encode()
    return Answer(status, {"Content-Length": str(len(body)), "Content-Type": "application/json"}, [body])


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """What Kubernetes gives a pod: its API server over TLS, a token, the authority, the namespace."""
    pem = certified(tmp_path, "127.0.0.1")
    for name, text in {"token": "first\n", "namespace": "farm", "ca.crt": pem.read_text()}.items():
        (tmp_path / name).write_text(text)
    there = Cluster()
    with scripted(there.answer, tls=serving(pem)) as url:
        host, port = url.removeprefix("https://").split(":")
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", host)
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", port)
        monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # it leads out of the cluster
        there.pods = Pods.here(tmp_path)
        there.folder = tmp_path
        yield there


class Index:
    """Jobs in workers' hands."""

    def __init__(self, url):
        self.client = connect(url)
        self.client.flushall()
        self.window = Window(self.client)
        self.names = iter(range(100))

    def take(self, worker):
        """A job that `worker` claims; what gives it back."""
        name = f"{next(self.names):032x}"
        ref = JobRef(name, "t", name, "m", keys.SINGLE, 0, 9)
        ledger = Ledger(self.client, worker=worker)
        ledger.enqueue([ref])
        (claim,) = ledger.claim([ref], lease_seconds=60)
        return lambda: ledger.release(ref, claim.owner, delay_seconds=0)

    def marks(self, cluster):
        return DeletionCost(cluster.pods, "dispatcher-1", self.window, Batches(self.client), Lead(self.window))


@pytest.fixture
def index(redis_url):
    return Index(redis_url)


def test_busy_workers_are_marked_and_idle_ones_not_each_once(cluster, index):
    give_back, _ = index.take("worker-a"), index.take("worker-a")
    done = index.take("worker-b")
    marks = index.marks(cluster)
    assert marks.mark() == 2
    assert sorted(cluster.patches) == [("worker-a", {COST: BUSY}), ("worker-b", {COST: BUSY})]
    assert cluster.annotations["worker-a"]["other"] == "kept"
    assert marks.mark() == 0  # nothing changed
    give_back(), done()
    assert marks.mark() == 1  # worker-a holds another
    assert cluster.patches[2:] == [("worker-b", {COST: IDLE})]
    assert cluster.selectors == {"app.kubernetes.io/instance=shop,app.kubernetes.io/component=worker"}


def test_the_token_of_the_day_is_used(cluster, index):
    marks = index.marks(cluster)
    marks.mark()
    (cluster.folder / "token").write_text("second")
    marks.mark()
    assert cluster.tokens == {"Bearer first", "Bearer second"}


def test_only_the_dispatcher_that_leads_marks(cluster, index):
    index.take("worker-a")
    first, second = index.marks(cluster), index.marks(cluster)
    assert first.mark() == 1
    cluster.annotations["worker-a"].clear()
    assert second.mark() == 0 and len(cluster.patches) == 1


def test_a_pod_that_is_gone_since_is_no_trouble(cluster, index):
    index.take("worker-a"), index.take("worker-b")
    cluster.before_patch = lambda name: cluster.annotations.pop("worker-a", None)
    assert index.marks(cluster).mark() == 2
    assert [name for name, _ in cluster.patches] == ["worker-b"]


@pytest.mark.parametrize("status", [401, 403, 500])
def test_an_api_server_that_refuses_is_left_alone_for_a_while(cluster, index, caplog, status):
    index.take("worker-a")
    cluster.status = status
    marks = index.marks(cluster)
    assert marks.mark() == 0 and not marks.due()
    assert str(status) in caplog.text and "first" not in caplog.text


def test_another_authority_is_not_trusted(cluster, index, tmp_path, monkeypatch):
    (tmp_path / "else").mkdir()
    (cluster.folder / "ca.crt").write_text(certified(tmp_path / "else", "127.0.0.1").read_text())
    cluster.pods = Pods.here(cluster.folder)
    assert index.marks(cluster).mark() == 0
    assert not cluster.tokens  # nobody was told it


def test_outside_of_a_cluster_and_without_a_token_there_is_nothing_to_mark(cluster, monkeypatch):
    (cluster.folder / "token").unlink()
    assert Pods.here(cluster.folder) is None
    (cluster.folder / "token").write_text("again")
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST")
    assert Pods.here(cluster.folder) is None
