import pytest
from spike_response import SpikeResponse
from spike_tables import (
    angle_table,
    growth_table,
    read_angles,
    read_spectrum,
    response_table,
    spectrum_table,
)

ROTATION = """step,parameter,side,reference,top1_deg,topk_deg,distance,change,top,second,verdict
50,net.weight,L,lag:1,0.5,0.25,0,0,1,1,stable
50,net.weight,R,lag:1,7,7,0,0,1,1,stable
51,net.weight,L,pre_spike,1.25,88.5,0,0,1,1,gauge
52,net.weight,L,post_spike,3,4,0,0,1,1,diverged
"""
SPECTRUM = """step,parameter,side,rank,value
51,net.weight,L,1,2000000
51,net.weight,L,2,1000000
51,net.weight,R,1,5
52,net.weight,L,1,1.6e7
"""


def cells(table):
    """Rows as lists, without the header's rule."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    return [lines[0], *lines[2:]]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "rotation.csv").write_text(ROTATION)
    (tmp_path / "spectrum.csv").write_text(SPECTRUM)
    return tmp_path


def test_reads_the_left_factor(folder):
    assert read_angles(folder) == {
        (50, "lag:1"): (0.5, 0.25),
        (51, "pre_spike"): (1.25, 88.5),
        (52, "post_spike"): (3, 4),
    }
    assert read_spectrum(folder) == {51: {1: 2e6, 2: 1e6}, 52: {1: 1.6e7}}


def test_refuses_several_parameters(folder):
    (folder / "spectrum.csv").write_text(SPECTRUM + "52,other,L,2,3\n")
    with pytest.raises(ValueError, match=r"one parameter, got \['net.weight', 'other'\]"):
        read_spectrum(folder)


def test_before_and_after_the_frame_stand_beside_the_reported(folder):
    header, *rows = cells(angle_table({"spike_soap_high": read_angles(folder)}, "pre_spike"))
    assert header == ["run", "N", "before", "after", "before, GPU", "after, GPU", "after, emulated"]
    assert rows[0] == [
        "spike_soap_high",
        "1",
        "0.500/0.250",
        "1.250/88.500",
        "0.000/0.028",
        "0.020/0.028",
        "0.020/0.059",
    ]
    assert rows[1] == ["spike_soap_high", "2", "-", "-", "0.000/0.059", "88.491/87.201", "45.4/88.5"]
    assert [row[1] for row in rows] == ["1", "2", "5", "10"]
    after = cells(angle_table({"spike_soap_high": read_angles(folder)}, "post_spike"))
    assert after[:2] == [["run", "N", "before", "after"], ["spike_soap_high", "1", "-", "3.000/4.000"]]


def test_the_spectrum_stands_beside_the_reported(folder):
    header, *rows = cells(spectrum_table("spike_rekls_high", read_spectrum(folder)))
    by_step = {row[0]: dict(zip(header[1:8:2], zip(row[1:8:2], row[2:9:2], strict=True), strict=True)) for row in rows}
    assert by_step["51"] == {
        "top": ("2.000e6", "2.291e6"),
        "2nd": ("1.000e6", "2.208e6"),
        "5th": ("", "1.869e6"),
        "10th": ("", "1.539e6"),
    }
    ratios = {row[0]: row[9:] for row in rows}
    assert ratios["51"] == ["2.0000", "1.0374"]
    assert ratios["70"] == ["", "1.0655"]


def test_a_spectrum_of_which_nothing_was_reported_stands_alone(folder):
    header, *rows = cells(spectrum_table("spike_soap_high", read_spectrum(folder)))
    assert header == ["step", "top", "2nd", "5th", "10th", "top/2nd"]
    assert rows[2] == ["51", "2.000e6", "1.000e6", "", "", "2.0000"]


def test_the_growth_of_the_top(folder):
    _, row = cells(growth_table({"spike_rekls_high": read_spectrum(folder)}))
    assert row[1:4] == ["2.000e6", "2.310e6", "2.291e6"]
    assert row[4:7] == ["1.600e7", "1.970e7", "1.539e7"]
    assert row[-1] == "8.0000"


def test_responses_are_rows():
    response = SpikeResponse(0.23, 0.43, 12.34, 1, 231, None)
    _, row = cells(response_table([("SOAP", 50, 1e3, response)]))
    assert row == ["SOAP", "50", "1e3", "0.23", "0.43", "12.3", "+1", "+231", "none within the run"]
