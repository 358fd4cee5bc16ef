"""The local endpoint spends money: no web page may reach it, and no answer is begun twice."""

import pytest
from aiohttp.test_utils import TestClient, TestServer

from nodeapp.core.errors import PaymentRequired
from nodeapp.renter.proxy import Events, Proxy


@pytest.fixture
async def client():
    async with TestClient(TestServer(Proxy(None, Events()).application())) as client:
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


class Record:
    class head:  # noqa: N801
        model_id = "m"

    def __init__(self):
        self.token_ids = []


class Renter:
    """Its first session is used up after `tokens` tokens of the answer."""

    def __init__(self, tokens):
        self.tokens, self.paid, self.asked = tokens, 0, 0

    async def reopen(self, _model_id):
        return None

    async def pay(self, _model_id):
        self.paid += 1
        return Record()

    async def ask(self, record, _question):
        self.asked += 1
        if self.asked == 1:
            record.token_ids += range(self.tokens)
            raise PaymentRequired("session is completed; open a new session")

    async def close(self, _record):
        return None


async def test_a_used_up_session_is_replaced_before_the_answer_begins():
    renter = Renter(0)
    await Proxy(renter, Events())._ask(None, "m")
    assert (renter.paid, renter.asked) == (2, 2)


async def test_an_answer_that_broke_off_is_not_begun_again():
    renter = Renter(5)
    with pytest.raises(PaymentRequired):
        await Proxy(renter, Events())._ask(None, "m")
    assert (renter.paid, renter.asked) == (1, 1)
