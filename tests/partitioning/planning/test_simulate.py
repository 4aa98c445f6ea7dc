import pytest

from edgeprune.partitioning.planning.simulate import Message, Piece, simulate


def link(source, to):
    """A second for each byte, and half a second besides."""
    return 1.0, 0.5


def message(source, to, stage, made, size=2):
    return Message(source, to, f"{made}>{stage}", size, stage, made)


def test_one_device_takes_the_sum():
    timeline = simulate([Piece(0, 0, 1.0), Piece(0, 1, 2.0)], [], link)
    assert timeline.seconds == 3.0
    assert timeline.busy(0) == 3.0
    assert [span.stage for span in timeline.critical] == [0, 1]


def test_a_device_computes_while_it_sends():
    pieces = [Piece(0, 0, 1.0), Piece(0, 1, 4.0), Piece(1, 1, 1.0), Piece(0, 2, 1.0)]
    timeline = simulate(pieces, [message(0, 1, 1, 0), message(1, 0, 2, 1)], link)
    # 1 computed, then sent for 2.5, computed for 1, sent for 2.5: 7, and 1 more; the host is long done with its own
    assert timeline.seconds == pytest.approx(8.0)
    kinds = [(span.kind, span.device) for span in timeline.critical]
    assert kinds == [("compute", 0), ("transfer", 0), ("compute", 1), ("transfer", 1), ("compute", 0)]


def test_an_input_is_sent_at_the_start():
    timeline = simulate([Piece(0, 0, 1.0), Piece(1, 0, 1.0)], [message(0, 1, 0, None)], link)
    assert timeline.seconds == pytest.approx(3.5)


def test_a_sender_sends_one_tensor_at_a_time_and_a_receiver_gets_one_at_a_time():
    pieces = [Piece(0, 0, 1.0), Piece(1, 1, 0.0), Piece(2, 1, 0.0)]
    timeline = simulate(pieces, [message(0, 1, 1, 0), message(0, 2, 1, 0)], link)
    assert timeline.seconds == pytest.approx(1.0 + 2.0 + 2.5)
    pieces = [Piece(1, 0, 1.0), Piece(2, 0, 1.0), Piece(0, 1, 0.0)]
    timeline = simulate(pieces, [message(1, 0, 1, 0), message(2, 0, 1, 0)], link)
    assert timeline.seconds == pytest.approx(1.0 + 2.0 + 2.5)


def test_the_bottleneck_is_the_busiest_device_or_link():
    timeline = simulate([Piece(0, 0, 1.0), Piece(1, 1, 1.5)], [message(0, 1, 1, 0, size=3)], link)
    assert timeline.bottleneck() == 3.0


def test_a_device_waits_for_what_arrives_last_even_if_its_link_was_done_before_the_device():
    pieces = [Piece(0, 0, 2.25), Piece(1, 0, 0.0), Piece(0, 1, 1.0)]
    timeline = simulate(pieces, [message(1, 0, 1, 0)], link)  # is sent until 2.0, and there at 2.5
    assert timeline.seconds == pytest.approx(3.5)
    assert [(span.kind, span.device) for span in timeline.critical] == [("compute", 1), ("transfer", 1), ("compute", 0)]
