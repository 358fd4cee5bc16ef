"""The local endpoint spends money: no web page may reach it."""

import pytest
from aiohttp.test_utils import TestClient, TestServer

from nodeapp.renter.proxy import Events, Proxy
from nodeapp.renter.settings import RenterSettings
from nodeapp.service.clock import SystemClock


class Renter:
    """Rents nothing: no request of these tests gets that far."""

    clock = SystemClock()
    settings = RenterSettings(
        state_dir="",
        deployment_file="",
        keystore_file="",
        password_file="",
        rpc_urls=("http://127.0.0.1:1",),
        chain_id=31337,
        bootstrap=(),
        model_id="none",
    )


@pytest.fixture
async def client():
    async with TestClient(TestServer(Proxy(Renter(), Events()).application())) as client:
        yield client


async def test_a_program_on_this_machine_is_served(client):
    assert (await client.get("/health")).status == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Host": "evil.example"},
        {"Host": "evil.example:8081"},
        {"Host": "127.0.0.1.evil.example"},
    ],
)
async def test_a_web_page_is_refused(client, headers):
    answer = await client.post("/v1/chat/completions", headers=headers, data=b"{}")
    assert answer.status == 401
    assert "web pages" in (await answer.json())["error"]["message"]


@pytest.mark.parametrize("host", ["localhost", "localhost:8081", "127.0.0.1:8081", "[::1]:8081"])
async def test_every_name_of_loopback_is_taken(client, host):
    assert (await client.get("/health", headers={"Host": host})).status == 200
