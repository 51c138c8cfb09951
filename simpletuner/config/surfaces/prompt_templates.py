"""Validation prompts made from a trigger phrase and the person's own captions: long ones, as LTX-Video wants them.

Pure text, nothing is downloaded. Prompts are English whatever the language of the talk, because the model reads
English. `{subject}` stands for the trigger phrase.
"""

from __future__ import annotations

from collections.abc import Mapping

from simpletuner.config.surfaces.wizard import Known
from simpletuner.config.validation_rules import SHORT_PROMPT_WORDS

CHARACTER: Mapping[str, str] = {
    "portrait": (
        "A close portrait of {subject} in soft evening light from a window at the side; the head turns slowly towards "
        "the camera, the eyes blink and a small smile appears, while the background stays out of focus and the camera "
        "holds still."
    ),
    "walk": (
        "{subject} walks along a narrow street after rain, seen from the front at eye level; lanterns are reflected "
        "in the puddles, passers-by cross behind with umbrellas, and the camera moves slowly backwards at the same "
        "pace."
    ),
    "kitchen": (
        "In a small, warm kitchen, {subject} lifts the lid from a pot, leans into the rising steam and tastes with a "
        "wooden spoon; copper pans hang on the wall, light falls in from the left, and the handheld camera comes a "
        "little closer."
    ),
    "hill": (
        "A wide view of a grassy hill on a windy summer day: {subject} stands at the top and looks over a valley with "
        "a winding river, the grass bends in waves, clouds drift quickly, and the camera circles from behind to the "
        "side."
    ),
    "night": (
        "{subject} sits by the window of a moving night train; city lights slide across the glass and over the face "
        "in changing colours, a gloved hand wipes the misted pane, and the camera drifts slowly from the window to "
        "the eyes."
    ),
}
STYLE: Mapping[str, str] = {
    "harbour": (
        "{subject}: a small harbour in the morning, fishing boats rock at their ropes, gulls circle above the pier "
        "and an old man coils a net, while light glitters on the water and the camera pans slowly from the boats to "
        "the houses."
    ),
    "dance": (
        "{subject}: a woman in a long dress dances alone in an empty hall, turning with raised arms as the cloth "
        "follows her; sunlight falls in through high windows in slanting beams, and the camera moves around her in a "
        "half circle."
    ),
    "forest": (
        "{subject}: a path through an autumn forest, leaves fall and are lifted by gusts of wind, a fox steps out "
        "between the trees, looks into the camera and runs on, while mist lies between the trunks in the distance."
    ),
    "city": (
        "{subject}: a busy street crossing in the evening, people with umbrellas hurry over wet stripes, a tram "
        "passes from left to right with lit windows, and the camera rises slowly from the ground above the heads of "
        "the crowd."
    ),
    "table": (
        "{subject}: a still table with a bowl of fruit, a glass of water and an open book; a curtain moves in the "
        "draught, a page turns by itself, shadows wander over the cloth, and the camera comes closer very slowly."
    ),
}
MOTION: Mapping[str, str] = {
    "street": (
        "A young man in a yellow jacket stands in a quiet street between brick houses, and then {subject}: the "
        "movement runs from beginning to end in one shot, the light stays even, and the camera holds still at eye "
        "level."
    ),
    "beach": (
        "On a wide beach at low tide, a child in a red coat looks out over the water, and {subject}; wet sand mirrors "
        "the sky, small waves run in and out, and the camera follows the movement smoothly from the side."
    ),
    "studio": (
        "In a bright studio with a plain grey wall, a dancer in black clothes faces the camera and {subject}; the "
        "whole body stays in the picture, the shadow on the floor moves along, and nothing else changes."
    ),
    "object": (
        "A wooden toy car stands on a kitchen table in the afternoon sun, and {subject}; dust shines in the beam of "
        "light, the table cloth has a blue pattern, and the camera moves slowly around the table."
    ),
}
PROMPTS: Mapping[str, Mapping[str, str]] = {
    "character": CHARACTER, "style": STYLE, "motion": MOTION, "other": STYLE,
}  # fmt: skip
# Shows whether the model still knows what the adapter was not taught.
UNRELATED = (
    "A long country road at sunset seen from a slowly moving car: golden light falls across dry fields, fence posts "
    "pass at the side, dust hangs in the air, and far away a single farmhouse with a red roof stands under a wide, "
    "clear sky."
)
WITHOUT_TRIGGER: Mapping[str, str] = {
    "character": "the main character", "motion": "the movement begins", "style": "A scene in the style of the clips",
    "other": "A scene like those of the clips",
}  # fmt: skip
SCENES, OWN_CAPTIONS = 3, 1  # each prompt is a video at every preview


def main_prompt(known: Known) -> str:
    """The proposed main prompt: the longest of the person's own captions, else the first scene around the trigger."""
    own = _own_captions(known)
    if own:
        return own[0]
    return next(iter(_scenes(known).values()))


def library(known: Known) -> dict[str, str]:
    """Nickname -> prompt: scenes around the trigger, some own captions, and one unrelated scene.

    The main prompt is not repeated.
    """
    own = _own_captions(known)[: OWN_CAPTIONS + 1]
    prompts = dict(list(_scenes(known).items())[:SCENES]) if known.answers.get("trigger") else {}
    main = known.answers.get("prompt")
    prompts |= {f"caption_{number}": text for number, text in enumerate(own, start=1)}
    prompts["unrelated"] = UNRELATED
    return {nickname: text for nickname, text in prompts.items() if text != main}


def _own_captions(known: Known) -> list[str]:
    """Captions long enough to be prompts."""
    captions = known.material.captions if known.material else ()
    return [text for text in captions if len(text.split()) >= SHORT_PROMPT_WORDS]


def _scenes(known: Known) -> dict[str, str]:
    subject = str(known.answers.get("subject") or "other")
    phrase = str(known.answers.get("trigger") or WITHOUT_TRIGGER[subject]).strip()
    return {nickname: _capitalised(text.replace("{subject}", phrase)) for nickname, text in PROMPTS[subject].items()}


def _capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]
