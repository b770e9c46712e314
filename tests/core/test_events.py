"""Event logs of older versions stay readable."""

from qlora_space.core.events import Gate, event_from_line, event_to_line

OLD_GATE = (
    '{"seq":7,"time":1764300000.5,"kind":"gate","bits":2.0,"init":"eora","rungs":['
    '{"name":"16 bit","ppl":9.51,"kl":0.0,"top1":1.0},{"name":"quantized","ppl":14.2,"kl":0.41,"top1":0.71}],'
    '"is_broken":false,"why":"","text":"your held-out rows"}'
)


def test_the_quality_points_of_an_older_gate_are_read() -> None:
    gate = event_from_line(OLD_GATE)
    assert isinstance(gate, Gate)
    assert [(point.name, point.kl) for point in gate.points] == [
        ("16 bit", 0.0),
        ("quantized", 0.41),
    ]
    assert event_from_line(event_to_line(gate)) == gate
