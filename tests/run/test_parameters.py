"""Parameters are checked before a kernel starts, and messages say what is valid."""

import pytest

from glocal.book.catalogue import chapter
from glocal.run.parameters import ParameterError, full_scale_values, parameters_of, parse_overrides, validate


@pytest.fixture
def entry(project):
    project.write("dkm")
    return chapter("dkm", project.root)


def test_parameters_come_with_type_default_and_help(entry):
    found = parameters_of(entry)
    assert list(found) == ["seed", "n_seeds", "device", "dataset", "scale", "rate", "widths"]
    assert (found["rate"].type, found["rate"].default, found["rate"].help) == ("float", 0.5, "learning rate")
    assert found["widths"].default == [8]


def test_help_may_contain_anything(project):
    project.write("dkm")
    source = project.root / "notebooks" / "theory" / "dkm.md"
    source.write_text(source.read_text().replace("# learning rate", "# sizes n = 8, d = 2: see #3"))
    assert parameters_of(chapter("dkm", project.root))["rate"].help == "sizes n = 8, d = 2: see #3"


def test_unknown_name_lists_the_valid_ones(entry):
    with pytest.raises(ParameterError, match="no parameter 'rat'; did you mean 'rate'") as error:
        validate(entry, {"rat": 1})
    assert "widths: list[int] = [8]  # hidden layers" in str(error.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seed", "one"),
        ("seed", 1.5),
        ("seed", True),
        ("rate", "fast"),
        ("rate", True),
        ("widths", 8),
        ("widths", ["a"]),
    ],
)
def test_wrong_type_names_parameter_type_and_value(entry, name, value):
    with pytest.raises(ParameterError, match=rf"parameter '{name}' of dkm must be"):
        validate(entry, {name: value})


def test_numbers_become_floats_where_floats_are_asked_for(entry):
    assert validate(entry, {"rate": 1}) == {"rate": 1.0}
    assert validate(entry, {"rate": "1e-3"}) == {"rate": 0.001}  # YAML 1.1 reads 1e-3 as text


def test_scale_belongs_to_the_runner(entry):
    with pytest.raises(ParameterError, match="use --full or --rehearse"):
        validate(entry, {"scale": "full"})


def test_overrides_are_read_as_yaml():
    assert parse_overrides(["a=1", "b=[1, 2]", "c=x=y", "d=true"]) == {"a": 1, "b": [1, 2], "c": "x=y", "d": True}


@pytest.mark.parametrize("text", [["a"], ["=1"], ["a=1", "a=2"], ["a=[1"]])
def test_bad_overrides_are_errors(text):
    with pytest.raises(ParameterError):
        parse_overrides(text)


@pytest.mark.parametrize(
    ("yaml", "message"),
    [("rates: 0.1", "no parameter 'rates'"), ("- 1", "must be a mapping"), ("a: [", "not valid YAML")],
)
def test_full_scale_file_is_checked(project, yaml, message):
    project.write("dkm", full=yaml)
    with pytest.raises(ParameterError, match=message):
        full_scale_values(chapter("dkm", project.root))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("rate: float = 0.5        # learning rate", "rate: float = 0.5", "needs a comment"),
        ("rate: float = 0.5 ", "rate: float = 1 / 2 ", "needs a literal default"),
        ("rate: float", "rate: complex", "needs a type"),
        ("rate: float = 0.5", "rate: float = 'x'", "must be float"),
        ('device: str = "cpu"      # torch device\n', "", "lacks device"),
        ("widths: list[int] = [8]", "print(1)", "holds more than"),
        ("rate: float = 0.5 ", "rate = 0.5 ", "needs a type"),
    ],
)
def test_parameters_cell_is_checked(project, old, new, message):
    project.write("dkm")
    source = project.root / "notebooks" / "theory" / "dkm.md"
    source.write_text(source.read_text().replace(old, new))
    with pytest.raises(ParameterError, match=message):
        parameters_of(chapter("dkm", project.root))
