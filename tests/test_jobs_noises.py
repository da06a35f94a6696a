"""What users write is read as the noises that they mean, and written back as they wrote it."""

from __future__ import annotations

import pickle

import pytest

from seatrial.catalogue import NOISE_FAMILIES, entries
from seatrial.errors import BadInput
from seatrial.jobs.noises import listed, parse_noise, text_of, with_checks
from seatrial.noise.pgd import PGD
from seatrial.noise.rounded import Rounded
from seatrial.noise.square import Square

EVERY = [text for family in NOISE_FAMILIES for text in listed("all", family)]


@pytest.mark.parametrize("text", EVERY)
def test_every_choice_of_the_catalogue_reads_and_writes_back(text: str) -> None:
    spec, maker = parse_noise(text)
    assert text_of(spec) == text
    assert type(pickle.loads(pickle.dumps(maker))()) is type(maker())


@pytest.mark.parametrize("name", entries("attack"))
def test_every_attack_can_be_rounded_to_8_bits(name: str) -> None:
    spec, maker = parse_noise(f"{name}:linf:8/255:8-bit")
    made = maker()
    assert isinstance(made, Rounded)
    assert type(made.attack) is type(parse_noise(f"{name}:linf:8/255")[1]())
    assert (spec.option, spec.from_float) == ("8-bit", False)


def test_what_is_special_about_an_attack_reads_in_any_order() -> None:
    specs = [parse_noise(f"pgd:linf:2/255:{flags}")[0] for flags in ("8-bit:from-float", "from-float:8-bit")]
    assert specs[0] == specs[1]
    assert specs[0].from_float
    assert parse_noise("square:linf:2/255:8-bit:300")[1]() == Rounded(attack=Square(epsilon="2/255", queries=300))
    assert parse_noise("pgd:linf:2/255:from-float")[1]() == PGD(epsilon="2/255")


def test_checks_are_rounded_where_the_attack_is() -> None:
    found = with_checks(["pgd:linf:2/255:8-bit", "square:linf:2/255"], queries=300)
    assert found[2:] == ("pgd:linf:2/255:8-bit:from-float", "square:linf:2/255:300:8-bit")


def test_autoattack_is_found_on_the_parent_too_and_names_without_choices_need_a_budget() -> None:
    found = with_checks(["autoattack:linf:8/255"], queries=None)
    assert found[1:] == ("autoattack:linf:8/255:from-float", "square:linf:8/255")
    with pytest.raises(BadInput, match=r"'fab' without a budget.*fab:linf:2/255"):
        listed("fgsm,fab", "attack")
    assert listed("apgd_dlr:linf:2/255", "attack") == ("apgd_dlr:linf:2/255",)


def test_one_square_checks_all_attacks_of_a_budget() -> None:
    found = with_checks(["fgsm:linf:2/255", "pgd:linf:2/255", "pgd:l2:2@224"], queries=None)
    assert [text for text in found if text.startswith("square")] == ["square:linf:2/255", "square:l2:2@224"]
    assert with_checks(["square:linf:2/255:50", "fgsm:linf:2/255"], queries=300).count("square:linf:2/255:50") == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("pgd:linf:2/255:9-bit", "a number of queries, from-float or 8-bit"),
        ("pgd:linf:2/255:300", "leave out the number of queries"),
        ("square:linf:2/255:300:300", "NAME:NORM:EPSILON"),
        ("gaussian_noise:x", "NAME:SEVERITY"),
        ("resize", "NAME:OPTION"),
        ("pgb:linf:2/255", "pgd"),
        ("decoder:pyav+resize:opencv-area+decoder:opencv", "each system noise once around a [+]"),
        ("decoder:pyav+brightness:1", "system noises around a [+]"),
    ],
)
def test_what_cannot_be_read_is_refused_with_the_way_out(text: str, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        parse_noise(text)


def test_a_noise_of_another_family_is_sent_to_its_list() -> None:
    with pytest.raises(
        BadInput, match=r"'brightness' in --system; wanted a noise of the family system.* --corruptions"
    ):
        listed("decoder:pyav+brightness:1", "system")
    with pytest.raises(BadInput, match=r"'square' in --corruptions; .*give it to --attacks"):
        listed("all,square", "corruption")
    with pytest.raises(BadInput, match="unknown attack 'nearest'"):
        listed("nearest", "attack")
