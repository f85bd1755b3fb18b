import xml.etree.ElementTree as ET

from quantize.report import charts

SVG = "{http://www.w3.org/2000/svg}"


def test_lines_are_xml_with_a_mark_for_every_value_and_the_limit() -> None:
    series = {"up_proj": [(0, 0.01), (1, 0.02), (2, None)], "a<b>": [(0, 0.0), (1, 1e-3), (2, 5.0)]}
    root = ET.fromstring(charts.lines(series, "layer", limit=0.25))
    titles = [t.text for t in root.iter(f"{SVG}title")]
    assert len(titles) == 6
    assert "up_proj, layer 2: not a number" in titles and "a<b>, layer 2: 5" in titles
    assert "limit 0.25" in [t.text for t in root.iter(f"{SVG}text")]


def test_larger_values_stand_higher() -> None:
    root = ET.fromstring(charts.lines({"x": [(0, 1e-4), (1, 1e-2), (2, 1.0)]}, "layer"))
    heights = [float(c.attrib["cy"]) for c in root.iter(f"{SVG}circle")]
    assert heights == sorted(heights, reverse=True) and len(set(heights)) == 3


def test_columns_grow_with_their_values_from_zero() -> None:
    root = ET.fromstring(charts.columns([("0", 4.0), ("1", 8.0)], "layer", "bits", average=6.0))
    low, high = (float(r.attrib["height"]) for r in root.iter(f"{SVG}rect"))
    assert high / low == 2


def test_charts_of_nothing_or_of_zero_are_drawn() -> None:
    for svg in (charts.lines({}, "layer"), charts.columns([], "layer", "s"), charts.columns([("0", 0.0)], "l", "s")):
        ET.fromstring(svg)
    ET.fromstring(charts.bars([("f16", 0.0, "0 bytes")]))
    ET.fromstring(charts.lines({"x": [(0, 0.0)]}, "layer"))
