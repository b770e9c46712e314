from qlora_space.app.ui.navigation import Address, parse_address


def test_the_address_is_untrusted_and_round_trips() -> None:
    assert parse_address("?run=ab&view=compare") == Address("ab", "compare")
    assert parse_address("run=ab&view=<script>") == Address("ab", "run")
    assert parse_address("") == Address()
    assert parse_address(str(Address("ab", "publish"))) == Address("ab", "publish")
