"""What an engine adds to a link is measured between two real processes."""

from __future__ import annotations

import numpy as np

from edgeprune.cluster.transport.echo import Echo, exchange_costs


def test_arrays_come_back_as_they_were_sent() -> None:
    rng = np.random.default_rng(0)
    with Echo() as echo:
        for size in (1, 1000, 300_000):
            array = rng.standard_normal((size,)).astype(np.float32)
            np.testing.assert_array_equal(echo.exchange(array), array)


def test_what_an_exchange_takes_is_told_with_its_source() -> None:
    costs = exchange_costs("zenoh, today")
    a_byte, a_message = costs.seconds
    assert 1e-6 < a_message < 1.0
    assert 0 < a_byte < 1e-5
    assert costs.message_ms.certainty == costs.gb_per_s.certainty == "measured"
    assert costs.gb_per_s.source.endswith("zenoh, today")
