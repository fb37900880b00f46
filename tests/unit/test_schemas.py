"""Jobs are frozen, travel as JSON unchanged, and refuse what cannot be right with a code and the field's name."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farm.errors import FarmError
from farm.schemas import InpaintJob, LoraRef

IMAGE = "s3://photos/a.png"

# what is wrong, the fields, the code, what the message must name
BAD = [
    ("unknown field", {"strenght": 0.5}, "UnknownField", "did you mean 'strength'"),
    ("unknown field in a LoRA", {"loras": [{"path": IMAGE, "weight": 1}]}, "UnknownField", "loras.0.weight"),
    ("unknown version", {"schema_version": 2}, "UnsupportedSpecVersion", "2"),
    ("strength above 1", {"strength": 1.5}, "InvalidParameter", "strength"),
    ("strength negative", {"strength": -1}, "InvalidParameter", "strength"),
    ("guidance NaN", {"guidance_scale": float("nan")}, "InvalidParameter", "guidance_scale"),
    ("no steps", {"num_inference_steps": 0}, "InvalidParameter", "num_inference_steps"),
    ("too many steps", {"num_inference_steps": 10**9}, "InvalidParameter", "num_inference_steps"),
    ("seed too large", {"seed": 2**70}, "InvalidParameter", "seed"),
    ("size not divisible by 8", {"height": 510, "width": 512}, "InvalidParameter", "height"),
    ("height alone", {"height": 512}, "InvalidParameter", "width"),
    ("unknown scheduler", {"scheduler": "magic"}, "InvalidParameter", "scheduler"),
    ("LoRA scale infinite", {"loras": [{"path": IMAGE, "scale": float("inf")}]}, "InvalidParameter", "loras.0.scale"),
    ("hash malformed", {"loras": [{"path": IMAGE, "sha256": "abc"}]}, "InvalidParameter", "loras.0.sha256"),
    ("deadline without a zone", {"deadline": "2030-01-01T00:00:00"}, "InvalidParameter", "time zone"),
    ("output is no prefix", {"output": "s3://out/here"}, "InvalidParameter", "output"),
    ("web address", {"image": "https://example.com/a.png"}, "UrlNotAllowed", "image"),
    ("instance metadata", {"mask": "http://169.254.169.254/latest"}, "UrlNotAllowed", "mask"),
    ("credentials", {"image": "s3://key:secret@bucket/a.png"}, "InvalidName", "image"),
    ("parent folder", {"image": "s3://photos/../a.png"}, "InvalidName", "image"),
    ("encoded parent folder", {"image": "s3://photos/%2e%2e/a.png"}, "InvalidName", "image"),
    ("NUL in an address", {"image": "s3://photos/a\0.png"}, "InvalidName", "image"),
    ("no scheme", {"image": "a.png"}, "InvalidName", "image"),
    ("custom_id with a slash", {"custom_id": "../../etc"}, "InvalidName", "custom_id"),
    ("tenant with a slash", {"tenant": "a/b"}, "InvalidName", "tenant"),
    ("NUL in the prompt", {"prompt": "a\0b"}, "InvalidPrompt", "prompt"),
    ("prompt too long", {"prompt": "x" * 8193}, "InvalidPrompt", "8192"),
    ("lone surrogate", {"negative_prompt": "\ud800"}, "InvalidPrompt", "negative_prompt"),
    ("a number for an address", {"image": 7}, "InvalidParameter", "image"),
]


@pytest.mark.parametrize(("fields", "code", "names"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_bad_fields_are_refused_by_name(fields, code, names):
    with pytest.raises(FarmError) as caught:
        InpaintJob(**{"image": IMAGE, **fields})
    assert caught.value.code == code
    assert names in str(caught.value)


def test_credentials_are_not_repeated_in_the_refusal():
    with pytest.raises(FarmError) as caught:
        InpaintJob(image="s3://key:secret@bucket/a.png")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"7", b'{"image": "s3://photos/a.png", "strength": NaN}', b"\xff"])
def test_what_is_not_a_job_is_refused(text):
    with pytest.raises(FarmError) as caught:
        InpaintJob.from_json(text)
    assert caught.value.code == "InvalidParameter"


@pytest.mark.parametrize(
    ("text", "code"),
    [(b'{"image": "' + b"x" * 70_000 + b'"}', "SpecTooLarge"), (b'{"image": ' + b"[" * 30_000, "InvalidParameter")],
    ids=["long", "deep"],
)
def test_a_spec_that_would_cost_memory_is_refused(text, code):
    with pytest.raises(FarmError) as caught:
        InpaintJob.from_json(text)
    assert caught.value.code == code


def test_a_job_cannot_be_changed():
    job = InpaintJob(image=IMAGE)
    with pytest.raises(ValueError, match="frozen"):
        job.strength = 0.5


@given(
    prompt=st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=200),
    strength=st.floats(0, 1),
    seed=st.none() | st.integers(0, 2**63 - 1),
    scale=st.floats(-10, 10),
)
def test_json_there_and_back_is_the_same_job(prompt, strength, seed, scale):
    job = InpaintJob(
        image=IMAGE, prompt=prompt, strength=strength, seed=seed, loras=(LoraRef(path=IMAGE, scale=scale),)
    )
    again = InpaintJob.from_json(job.to_json())
    assert again == job
    assert again.to_json() == job.to_json()


def test_the_name_of_a_nameless_job_follows_its_content():
    one, same, other = (InpaintJob(image=IMAGE, prompt=prompt) for prompt in ("a", "a", "b"))
    assert one.content_name() == same.content_name() != other.content_name()
