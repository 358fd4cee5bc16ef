"""supervisord.conf is rendered as recorded, supervisord takes it, and each process gets only its own."""

import re
from pathlib import Path

import msgspec
import pytest
import tomli
from hypothesis import given
from hypothesis import strategies as st
from supervisor.options import ServerOptions

from nodeapp.core.errors import InvalidRequest
from nodeapp.service.config import load_settings
from nodeapp.service.paths import Paths
from nodeapp.service.settings import NodeSettings, Settings, UpdaterSettings
from nodeapp.service.supervisord import (
    PROGRAMS,
    WATCHDOG,
    WATCHDOG_MODULE,
    Tree,
    process_settings,
    render_supervisord,
    settings_file,
    to_toml,
)

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = Path(__file__).parent / "golden" / "supervisord.conf"
PATHS = Paths(Path("/var/lib/fabstir"), Path("/run/fabstir"), Path("/var/cache/fabstir"))
TREE = Tree(PATHS, Path("/opt/fabstir/bin/python"), Path("/opt/fabstir"), NodeSettings().processes)


def test_the_rendered_text_is_the_recorded_one():
    assert render_supervisord(TREE) == GOLDEN.read_text("utf-8")


def test_no_tcp_control_socket_is_ever_rendered():
    text = render_supervisord(TREE)
    assert "inet_http_server" not in text
    assert "chmod = 0700" in text


def test_the_real_supervisord_reads_it_even_with_odd_paths(tmp_path, monkeypatch):
    odd = tmp_path / "state with space"
    paths = Paths(odd, odd / "run", odd / "cache")
    for directory in (paths.state, paths.run, paths.log):
        directory.mkdir(exist_ok=True)
    file = tmp_path / "supervisord.conf"
    file.write_text(render_supervisord(Tree(paths, TREE.python, tmp_path, TREE.processes)))
    monkeypatch.chdir(tmp_path)
    options = ServerOptions()
    options.realize(["-c", str(file)])
    names = {
        config.name for group in options.process_group_configs for config in group.process_configs
    }
    assert names == {*NodeSettings().processes, WATCHDOG}
    (chain,) = (
        config
        for group in options.process_group_configs
        for config in group.process_configs
        if config.name == "chain"
    )
    assert str(settings_file(paths, "chain")) in chain.command.replace("'", "")
    assert chain.killasgroup
    assert chain.stopwaitsecs == 11


def test_the_edge_stops_before_what_it_relies_on_and_the_watchdog_before_all():
    text = render_supervisord(TREE)
    priorities = {
        name: int(re.search(rf":{name}\]\n(?:.+\n)*?priority = (\d+)", text)[1])
        for name in (*TREE.processes, WATCHDOG)
    }
    ordered = sorted(priorities, key=priorities.__getitem__, reverse=True)
    assert ordered[:2] == [WATCHDOG, "p2p"]
    assert ordered.index("chain") < ordered.index("prover")


def test_every_program_module_exists():
    for kind in (*(kind.module for kind in PROGRAMS.values()), WATCHDOG_MODULE):
        assert (ROOT / (kind.replace(".", "/") + ".py")).exists(), kind


def test_a_main_reads_only_the_sections_it_is_given():
    modules = {name: kind.module for name, kind in PROGRAMS.items()} | {WATCHDOG: WATCHDOG_MODULE}
    for name, module in modules.items():
        text = (ROOT / (module.replace(".", "/") + ".py")).read_text("utf-8")
        used = set(re.findall(r"\bsettings\.([a-z0-9_]+)\b(?=[,)])", text))
        assert used & {*Settings.__struct_fields__} <= {"node", name}, module


def test_an_unknown_process_is_refused_by_name():
    with pytest.raises(InvalidRequest, match=r"node.processes names 'gpu'; known: chain"):
        render_supervisord(Tree(PATHS, TREE.python, TREE.source, ("gpu",)))


@pytest.mark.parametrize("path", ["/a\nb", "/100%", "/a ;b"])
def test_a_path_the_format_cannot_carry_is_refused(path):
    with pytest.raises(InvalidRequest, match="cannot be written"):
        render_supervisord(
            Tree(Paths(Path(path), PATHS.run, PATHS.cache), TREE.python, TREE.source, ("chain",))
        )


def test_a_process_is_handed_its_own_section_and_read_back_the_same(tmp_path):
    settings = Settings(updater=UpdaterSettings(keep_snapshots=3))
    text = process_settings(settings, "updater", PATHS)
    assert set(tomli.loads(text)) == {"node", "updater"}
    file = tmp_path / "updater.toml"
    file.write_text(text)
    loaded = load_settings(file, environment={})
    assert loaded.updater == settings.updater
    assert loaded.node.state_dir == "/var/lib/fabstir"


@given(st.text(max_size=60))
def test_property_any_text_survives_the_settings_file(text):
    section = UpdaterSettings(snapshot_dir=text)
    try:
        parsed = tomli.loads(to_toml("updater", section))
    except UnicodeEncodeError:
        return
    assert msgspec.convert(parsed["updater"], UpdaterSettings) == section
