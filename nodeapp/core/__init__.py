"""Pure core: values, money and protocol rules. No I/O, clock, randomness or logging."""
