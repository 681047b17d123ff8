"""Plugins: files and modules outside the package, announced without importing, usable in other processes."""

import multiprocessing
import pickle
import sys

import pytest

from vissl_like.plugins import PluginPickle, announce_plugins, import_plugin
from vissl_like.registry import SCHEDULES, DuplicateNameError
from vissl_like.utils.errors import UserError

SOURCE = '''
from vissl_like.registry import SCHEDULES

@SCHEDULES.register("{name}")
class Mine:
    """A schedule from outside."""

    def __init__(self, base, *, factor: float = 2.0):
        self.base, self.factor = base, factor

    def __call__(self, progress):
        return self.base * self.factor
'''


def plugin(tmp_path, name, text=SOURCE):
    file = tmp_path / f"{name}.py"
    file.write_text(text.format(name=name))
    return str(file)


def test_a_file_is_known_before_and_usable_after_its_import(tmp_path):
    path = plugin(tmp_path, "outside_a")
    assert announce_plugins([path]) == [path]
    assert "outside_a" in SCHEDULES.names()
    assert not any("outside_a" in name for name in sys.modules)
    assert SCHEDULES.describe("outside_a").options["factor"].default == 2.0
    assert SCHEDULES.get("outside_a")(3.0)(None) == 6.0


def test_an_installed_package_with_submodules(tmp_path, monkeypatch):
    package = tmp_path / "outside_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "inner.py").write_text(SOURCE.format(name="outside_b"))
    monkeypatch.syspath_prepend(str(tmp_path))
    announce_plugins(["outside_package"])
    assert SCHEDULES.get("outside_b")(1.0, factor=5.0)(None) == 5.0


def test_mistakes_are_named(tmp_path):
    with pytest.raises(UserError, match="not an importable module"):
        announce_plugins(["no_such_package_at_all"])
    with pytest.raises(UserError, match="does not exist"):
        announce_plugins([str(tmp_path / "none.py")])
    broken = tmp_path / "broken.py"
    broken.write_text("def (")
    with pytest.raises(UserError, match="not valid Python"):
        announce_plugins([str(broken)])
    with pytest.raises(DuplicateNameError, match="'cosine'"):
        announce_plugins([plugin(tmp_path, "cosine")])
    failing = tmp_path / "failing.py"
    failing.write_text("raise ValueError('inside')")
    with pytest.raises(UserError, match=r"failing.py' cannot be imported: ValueError: inside"):
        import_plugin(str(failing))


def _use(carried, queue):
    queue.put(carried.value(None))


def test_objects_of_a_plugin_reach_a_spawned_process(tmp_path):
    path = plugin(tmp_path, "outside_c")
    announce_plugins([path])
    carried = PluginPickle(SCHEDULES.get("outside_c")(4.0), [path])
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    worker = context.Process(target=_use, args=(carried, queue))
    worker.start()
    assert queue.get(timeout=60) == 8.0
    worker.join()
    assert pickle.loads(pickle.dumps(carried)).plugins == [path]
