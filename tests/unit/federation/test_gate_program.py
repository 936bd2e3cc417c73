"""The gate as a site runs it: Flower's SuperNode state and ClientApp program, behind the site's programs."""

from __future__ import annotations

import dataclasses
import io
import os
import shutil
import subprocess
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import uvicorn
from flwr.app import ConfigRecord, Message, Metadata, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.constant import ErrorCode
from flwr.supercore.constant import TASK_TYPE_TO_COMMAND, TaskType
from flwr.supercore.fab import Fab
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import Run
from flwr.supernode.main import create_app
from flwr.supernode.nodestate import NodeStateFactory
from flwr.supernode.start_client_internal import _pull_and_store_message

import fedfair
from fedfair.federation.approval import approve
from fedfair.federation.gate import OVERTIME
from fedfair.federation.join import environment, write_programs
from tests.unit.federation.codes import fab, sha
from tests.unit.federation.sites import NAME, unpacked

ROOT = Path(fedfair.__file__).parents[1]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return fab(tmp_path_factory.mktemp("good"), "good")


@pytest.fixture
def site(tmp_path: Path) -> Path:
    return unpacked(tmp_path)


@dataclasses.dataclass
class Node:
    """A SuperNode's own state and API, between a server as a test makes it and the site's programs."""

    site: Path
    factory: NodeStateFactory
    port: int

    def send(self, content: bytes, ttl: float = 60.0, seconds: int = 0, **run: Any) -> str:
        """Let a server send one message with this code; return the token of the task that it makes."""
        state = self.factory.state()
        state.set_node_id(11)
        about = Metadata(5, "", 1, 11, "", "2", time.time(), ttl, "query")
        message = Message(RecordDict({"asked": ConfigRecord({"x": 1})}), metadata=about)
        tree = get_object_tree(message)
        objects = {key: value.deflate() for key, value in get_all_nested_objects(message).items()}
        message.metadata.__dict__["_message_id"] = message.object_id
        told = {"fab_id": "centre/tiny", "fab_version": "1.0.0", "fab_hash": sha(content), "series_id": 5}
        told |= {"override_config": {"seconds": seconds}} | run
        took = _pull_and_store_message(
            state=state,
            object_store=self.factory.objectstore_factory.store(),
            node_config={"site": NAME},
            receive=Mock(return_value=(remove_content_from_message(message), tree)),
            get_run=Mock(return_value=dataclasses.replace(Run.create_empty(5), **told)),
            get_fab=Mock(return_value=Fab("", content, {})),
            pull_object=Mock(side_effect=lambda _, key: objects[key]),
            confirm_message_received=Mock(),
            trusted_entities=None,
        )
        assert took == 5
        (task,) = state.get_tasks()
        self.kind = TaskType(task.type)
        token = state.claim_task(task.task_id)
        assert token is not None
        return token

    def work(self, token: str) -> subprocess.CompletedProcess[str]:
        """Start what a SuperNode would start for its task, found as it would find it."""
        around = environment(self.site, os.environ)
        name = TASK_TYPE_TO_COMMAND[self.kind]
        program = shutil.which(name, path=around["PATH"])
        assert program == str(self.site / "bin" / name)
        return subprocess.run(
            [program, "--runtime-api-address", f"127.0.0.1:{self.port}", "--token", token, "--insecure"],
            env={**around, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
            timeout=90,
        )

    def reply(self) -> Message | None:
        """Return the answer that waits to be sent to the server, as far as it is stored."""
        replies = self.factory.state().get_messages_legacy(is_reply=True)
        return replies[0] if replies else None

    def told(self, reply: Message) -> ConfigRecord:
        """Return the content of an answer."""
        store = self.factory.objectstore_factory.store()
        tree = store.get_object_tree(reply.metadata.message_id)
        whole = inflate_object_from_contents(
            tree.object_id,
            {leaf.object_id: store.get(leaf.object_id) or b"" for leaf in iterate_object_tree(tree)},
        )
        assert isinstance(whole, Message)
        return whole.content.config_records["told"]


@pytest.fixture
def node(site: Path) -> Iterator[Node]:
    write_programs(site)
    factory = NodeStateFactory(ObjectStoreFactory())
    app = create_app(factory)
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error", ws="none"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while thread.is_alive() and not server.started:
        time.sleep(0.02)
    try:
        yield Node(site, factory, server.servers[0].sockets[0].getsockname()[1])
    finally:
        server.should_exit = True
        thread.join()


@pytest.mark.slow
def test_approved_code_answers_with_the_library_that_it_brought(node: Node, good: bytes) -> None:
    approve(node.site, sha(good), "ada")
    done = node.work(node.send(good))
    assert (reply := node.reply()) is not None and not reply.has_error(), done.stderr
    told = node.told(reply)
    # The gate has imported the site's own fedfair before; the app must not get that one.
    assert (told["said"], told["library"]) == ("good", "delivered with good")
    assert Path(str(told["fedfair"])).is_relative_to(node.site / "flwr" / "code" / sha(good))


@pytest.mark.slow
def test_the_refusal_is_the_answer_that_the_server_gets(node: Node, good: bytes) -> None:
    done = node.work(node.send(good))
    assert (reply := node.reply()) is not None and reply.has_error(), done.stderr
    assert reply.error.code == ErrorCode.CLIENT_APP_RAISED_EXCEPTION
    assert f"site {NAME} has not approved the code {sha(good)}" in str(reply.error.reason)
    assert done.returncode != 0
    assert not (node.site / "flwr" / "code").exists()


@pytest.mark.slow
def test_a_version_that_leads_elsewhere_runs_nothing(node: Node, good: bytes, tmp_path: Path) -> None:
    approve(node.site, sha(good), "ada")
    # What a server could lead to: an app of its choosing under a name that ends in the same eight digits.
    approved = f"1.0.0.{sha(good)[:8]}"
    planted = tmp_path / f"x.{sha(good)[:8]}"
    with zipfile.ZipFile(io.BytesIO(good)) as archive:
        archive.extractall(planted)
    (planted / "client" / "app.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    up = "/".join([".."] * len((node.site / "flwr" / "code" / sha(good) / "apps" / "app").parts))
    done = node.work(node.send(good, fab_version=f"{approved}/{up}{tmp_path}/x"))
    assert (reply := node.reply()) is not None and reply.has_error(), done.stderr
    assert "must run the code that it checked" in str(reply.error.reason)
    assert not (tmp_path / "ran").exists()


@pytest.mark.slow
def test_work_that_hangs_ends_with_its_message(node: Node, good: bytes) -> None:
    approve(node.site, sha(good), "ada")
    # Long enough to start Python and Flower twice over, far less than the work would take.
    done = node.work(node.send(good, ttl=8.0, seconds=300))
    assert done.returncode == OVERTIME, done.stderr
    assert done.stderr.count("the time of the message is over") == 1
    assert node.reply() is None


@pytest.mark.slow
def test_an_agent_is_refused(node: Node, good: bytes) -> None:
    approve(node.site, sha(good), "ada")
    done = node.work(node.send(good, primary_task_type=TaskType.AGENT_APP))
    assert (done.returncode, done.stderr) == (1, "fedfair: this site does not run flwr-agentapp\n")


@pytest.mark.parametrize("kind", TaskType)
def test_each_program_that_a_server_may_start_is_the_sites_own(site: Path, kind: TaskType) -> None:
    write_programs(site)
    name = TASK_TYPE_TO_COMMAND[kind]
    assert shutil.which(name, path=environment(site, os.environ)["PATH"]) == str(site / "bin" / name)
