# pragma version 0.4.3
"""
@title Earnings that hosts pull
@notice The marketplace moves the assets here and then credits them; address(0) is the native coin.
"""

interface Asset:
    def transfer(to: address, amount: uint256) -> bool: nonpayable

event EarningsCredited:
    host: indexed(address)
    token: indexed(address)
    amount: uint256
    newBalance: uint256

event EarningsWithdrawn:
    host: indexed(address)
    token: indexed(address)
    amount: uint256
    remainingBalance: uint256

event CallerAuthorized:
    caller: indexed(address)
    authorized: bool

MAX_ASSETS: constant(uint256) = 32

owner: public(address)
authorizedCallers: public(HashMap[address, bool])
_balances: HashMap[address, HashMap[address, uint256]]


@deploy
def __init__():
    self.owner = msg.sender


@external
@payable
def __default__():
    pass


@external
def setAuthorizedCaller(caller: address, authorized: bool):
    assert msg.sender == self.owner, "Not owner"
    assert caller != empty(address), "Zero address"
    self.authorizedCallers[caller] = authorized
    log CallerAuthorized(caller=caller, authorized=authorized)


@external
def creditEarnings(host: address, amount: uint256, token: address):
    assert self.authorizedCallers[msg.sender], "Not authorized"
    assert host != empty(address), "Zero address"
    balance: uint256 = self._balances[host][token] + amount
    self._balances[host][token] = balance
    log EarningsCredited(host=host, token=token, amount=amount, newBalance=balance)


@internal
def _withdraw(host: address, amount: uint256, token: address):
    assert amount > 0, "Zero amount"
    balance: uint256 = self._balances[host][token]
    assert balance >= amount, "Insufficient balance"
    # Booked before the transfer: a host that is a contract may call back.
    self._balances[host][token] = balance - amount
    if token == empty(address):
        raw_call(host, b"", value=amount)
    else:
        assert extcall Asset(token).transfer(host, amount, default_return_value=True), "Transfer failed"
    log EarningsWithdrawn(
        host=host, token=token, amount=amount, remainingBalance=balance - amount
    )


@external
@nonreentrant
def withdraw(amount: uint256, token: address):
    self._withdraw(msg.sender, amount, token)


@external
@nonreentrant
def withdrawAll(token: address):
    self._withdraw(msg.sender, self._balances[msg.sender][token], token)


@external
@nonreentrant
def withdrawMultiple(tokens: DynArray[address, MAX_ASSETS]):
    for token: address in tokens:
        balance: uint256 = self._balances[msg.sender][token]
        if balance > 0:
            self._withdraw(msg.sender, balance, token)


@external
@view
def getBalance(host: address, token: address) -> uint256:
    return self._balances[host][token]


@external
@view
def getBalances(
    host: address, tokens: DynArray[address, MAX_ASSETS]
) -> DynArray[uint256, MAX_ASSETS]:
    balances: DynArray[uint256, MAX_ASSETS] = []
    for token: address in tokens:
        balances.append(self._balances[host][token])
    return balances
