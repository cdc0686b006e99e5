from eigenscope.callbacks.spectra.step_table import StepTable

COLUMNS = ("step", "name", "value")


def test_rows_after_the_start_and_broken_ones_are_dropped(tmp_path):
    path = tmp_path / "new" / "table.csv"
    table = StepTable(path, COLUMNS, step=0)
    table.append([(1, "a, b", 1 / 3), (2, "c", float("nan"))])
    table.append([(3, "d", 1e-9)])
    with path.open("a") as file:
        file.write("2,e")
    again = StepTable(path, COLUMNS, step=2)
    again.append([(3, "f", 2)])
    assert path.read_text().splitlines() == ["step,name,value", '1,"a, b",0.333333', "2,c,nan", "3,f,2"]


def test_a_new_run_starts_empty_and_so_does_one_with_other_columns(tmp_path):
    path = tmp_path / "table.csv"
    StepTable(path, COLUMNS, step=0).append([(1, "a", 1.0)])
    StepTable(path, COLUMNS, step=0)
    assert path.read_text().splitlines() == ["step,name,value"]
    StepTable(path, COLUMNS, step=0).append([(1, "a", 1.0)])
    StepTable(path, (*COLUMNS, "more"), step=5)
    assert path.read_text().splitlines() == ["step,name,value,more"]
    path.write_text("")
    StepTable(path, COLUMNS, step=5)
    assert path.read_text().splitlines() == ["step,name,value"]
