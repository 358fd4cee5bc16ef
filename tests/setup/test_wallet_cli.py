"""A wallet that is not there is answered with the command that makes one."""

from tests.setup.test_cli import fabstir


def test_showing_a_wallet_without_settings_says_what_to_do():
    done = fabstir("wallet", "show")
    assert done.returncode == 1
    assert "chain.keystore_file and chain.password_file not set" in done.stderr
    assert "--config, or make a wallet with `fabstir-node wallet new --keystore" in done.stderr


def test_showing_a_wallet_that_was_never_made_says_how_to_make_it(tmp_path):
    file = tmp_path / "node.toml"
    file.write_text('[chain]\nkeystore_file = "keys/host.json"\npassword_file = "keys/word"\n')
    done = fabstir("wallet", "show", "--config", str(file))
    assert done.returncode == 1
    keys = tmp_path / "keys"
    command = f"wallet new --keystore {keys}/host.json --password-file {keys}/word"
    assert done.stderr == (
        f"error: keystore {keys}/host.json does not exist; make one with `fabstir-node {command}`\n"
    )
