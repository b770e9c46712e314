"""quality.json beside a packed base, also one that an older version wrote."""

from pathlib import Path

from qlora_space.runs import known_quality

OLD = (
    '{"base_id":"demo","base_sha":"00000000","bits":2,"init":"eora","heal":false,"group_size":64,"mean_bits":0.0,'
    '"gptq":false,"r":32,"bits_per_weight":2.281,"text":"your held-out rows",'
    '"rungs":[{"name":"16 bit","ppl":9.51,"kl":0.0,"top1":1.0}]}'
)


def test_a_file_of_an_older_version_is_read_and_a_damaged_one_is_skipped(tmp_path: Path) -> None:
    for name, text in (("a", OLD), ("b", "{")):
        folder = tmp_path / "base" / f"start-{name}"
        folder.mkdir(parents=True)
        (folder / "quality.json").write_text(text)
    (quality,) = known_quality(tmp_path, "00000000")
    assert [point.ppl for point in quality.points] == [9.51]
    assert known_quality(tmp_path, "another") == []
