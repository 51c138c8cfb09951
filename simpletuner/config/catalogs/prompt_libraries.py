"""Built-in sets of validation prompts: the values of `validation_prompt_library`.

Written for LTX-Video, which was trained on long captions: what happens first, then how it moves, what it looks like,
where it is, what the camera does and what the light is like. A set is short, because each prompt costs a video.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from simpletuner.core.catalog import Catalog

NONE = "none"


@dataclass(frozen=True)
class LibraryRow:
    """One set.

    Attributes:
        target: Nickname -> prompt.
        help: One sentence for people.
    """

    target: str
    help: str


GENERAL: Mapping[str, str] = {
    "walk_in_rain": (
        "A woman in a yellow raincoat walks towards the camera along a narrow cobbled street while steady rain falls."
        " She holds a black umbrella in her right hand, and with each step small splashes rise from the wet stones. "
        "She looks to the left at a lit shop window. The houses are of grey stone with wooden shutters. The camera "
        "moves backwards at her pace. The light is soft and overcast, with warm reflections of the windows on the "
        "street."
    ),
    "coffee_pour": (
        "A thin stream of hot coffee is poured from a steel kettle into a white ceramic cup that stands on a dark "
        "wooden table. The liquid swirls and slowly rises to the brim while steam curls upwards and drifts to the "
        "right. A hand holds the kettle at the left edge of the picture. The background is blurred and shows a "
        "kitchen shelf with glass jars. The camera is still and very close. Morning light comes from a window on the "
        "left and makes the steam glow."
    ),
    "coast_flight": (
        "Waves roll in from a deep blue sea and break into white foam against dark cliffs. The water draws back over "
        "wet rocks and gathers again. On top of the cliffs green grass bends in the wind, and a narrow footpath "
        "follows the edge. A few seagulls glide through the picture from right to left. The camera flies forward high"
        " above the shore at a constant speed and tilts slowly down. The scene is lit by a low afternoon sun that "
        "casts long shadows, and the colours are rich and natural."
    ),
    "dog_and_ball": (
        "A brown and white dog runs across a meadow after a red ball that rolls ahead of it. Its ears flap with each "
        "leap, its paws throw up bits of grass, and at last it catches the ball, turns around and trots back. The "
        "meadow is fresh green with scattered yellow flowers, and a row of trees stands in the background. The camera"
        " follows the dog from the side near the ground. The sun shines from behind and draws a bright rim around the"
        " fur of the animal."
    ),
    "old_watchmaker": (
        "An old man with a short white beard sits at a workbench and repairs a pocket watch with fine tweezers. He "
        "bends forward, lifts a tiny brass wheel out of the case and turns it slowly between his fingers. He wears "
        "round glasses and a dark green apron over a striped shirt. Small drawers and clock faces cover the wall "
        "behind him. The camera moves slowly closer to his hands and then comes to rest. A single desk lamp gives "
        "warm light, and the rest of the workshop lies in deep shadow."
    ),
    "night_city": (
        "Cars drive through a wide street of a large city at night, their lights leaving reflections on the wet "
        "asphalt. People with bags and coats wait at a crossing, and when the light changes they walk across from "
        "both sides. Tall buildings with bright signs in blue, pink and orange rise on the left and on the right, and"
        " a tram passes in the background. The camera stands at eye level and pans slowly from left to right. The air"
        " is misty, and every lamp has a soft halo."
    ),
}

MOTION: Mapping[str, str] = {
    "still_lake": (
        "A mountain lake lies perfectly calm at dawn and mirrors the snow-covered peaks behind it. Nothing moves but "
        "a thin layer of mist that drifts slowly over the water and a few ripples that spread from a point near the "
        "shore. Dark fir trees stand along the right edge. The camera is fixed on a tripod and does not move at all. "
        "The light is cold and blue, and only the highest peak is touched by the first pink light of the sun."
    ),
    "street_dancer": (
        "A young man in a white shirt and black trousers dances on an empty square in front of a concrete wall. He "
        "spins on one foot, drops to the ground, swings his legs around in a wide circle and jumps up again without a"
        " pause. His movements are fast and precise, and the shirt follows each turn. The camera circles around him "
        "at a constant distance from left to right. Hard noon sunlight throws a sharp shadow beside him that repeats "
        "every movement on the pale ground."
    ),
    "train_passing": (
        "A long red train passes a small country station at high speed from left to right. Its windows flash by one "
        "after the other, dust and dry leaves are whirled up from the platform, and the grass between the tracks "
        "bends in its wake. When the last carriage has passed, the leaves sink slowly to the ground and the platform "
        "is quiet again. The camera stands still on the opposite platform. It is a cloudy autumn day with even light "
        "and muted colours."
    ),
    "candle_breath": (
        "A single candle burns on a wooden table in a dark room. The flame stands still at first, then somebody out "
        "of the picture breathes gently, and it bends to the right, flickers and rises again. A drop of wax runs down"
        " the side of the candle and hardens. Old books stand on a shelf behind it. The camera moves almost "
        "imperceptibly closer. All the light comes from the flame, warm and yellow, and the shadows move with it on "
        "the wall."
    ),
    "skateboard_jump": (
        "A girl on a skateboard rolls down a smooth concrete ramp, pushes off, leaps over a low step and lands "
        "cleanly on both feet. Her arms swing up for balance, her hair flies back under the helmet, and the board "
        "turns once beneath her before the wheels touch the ground. She rolls out of the picture to the right, "
        "laughing. The camera follows her from the side. The skate park is painted light blue, and the evening sun "
        "shines straight across it."
    ),
}

PEOPLE: Mapping[str, str] = {
    "smile_by_window": (
        "A woman with curly dark hair sits by a window and looks out, then turns her head slowly to the camera and "
        "begins to smile. She tucks a strand of hair behind her ear with her left hand. She wears a grey woollen "
        "pullover, and a cup stands on the windowsill in front of her. Drops of rain run down the glass, and the "
        "garden behind it is out of focus. The camera is still and shows her head and shoulders. Soft daylight falls "
        "on one side of her face."
    ),
    "two_friends_talking": (
        "Two men sit on a bench in a park and talk. The older one, in a brown jacket and a flat cap, tells a story "
        "and draws a wide arc in the air with both hands; the younger one, in a red sweater, shakes his head and "
        "laughs. People walk by on the path behind them. The camera stands in front of them and moves slowly to the "
        "left. It is a bright spring day, and the shadows of leaves tremble on their clothes."
    ),
    "baker_kneading": (
        "A baker kneads a large piece of dough on a floured table. He presses it away with the heels of both hands, "
        "folds it back, turns it and presses again in a steady rhythm, and flour rises into the air with each "
        "movement. He wears a white apron and a cloth around his head. Trays with finished loaves stand on racks "
        "behind him. The camera looks down on the table at an angle and moves slowly closer. The bakery is lit by "
        "warm lamps, and blue morning light falls through the door."
    ),
    "child_with_kite": (
        "A small boy in a striped shirt runs along a sandy beach and pulls a red and yellow kite behind him on a "
        "string. The kite wobbles, touches the ground, lifts off again and climbs into the sky, and the boy stops, "
        "leans back and looks up at it with his mouth open. His footprints lead back along the waterline. The sea is "
        "light green with small waves. The camera stays low and follows him from behind. The sun is high, and thin "
        "white clouds move across the sky."
    ),
    "violinist_on_stage": (
        "A violinist in a long black dress plays on a stage, swaying slightly with the music. Her right arm draws the"
        " bow in long strokes, then in short quick ones, and the fingers of her left hand move surely over the "
        "strings. Her eyes are closed. A grand piano stands behind her in half darkness. The camera moves in a slow "
        "arc from her left side to the front. A single spotlight from above leaves bright edges on her hair and on "
        "the wood of the violin."
    ),
}

_MODULE = "simpletuner.config.catalogs.prompt_libraries"

PROMPT_LIBRARIES: Catalog[LibraryRow] = Catalog(
    "prompt library",
    {
        "general": LibraryRow(
            f"{_MODULE}:GENERAL", "Six scenes of different kinds: people, objects, animals, land, city."
        ),
        "motion": LibraryRow(
            f"{_MODULE}:MOTION", "Five scenes from nearly still to fast, with fixed and moving cameras."
        ),
        "people": LibraryRow(f"{_MODULE}:PEOPLE", "Five scenes of people, near and far, alone and together."),
    },
)


def read_built_in(name: str) -> Mapping[str, str]:
    """Nickname -> prompt of the set called `name`; empty for "none"."""
    if name == NONE:
        return {}
    found: Mapping[str, str] = PROMPT_LIBRARIES.load(name)
    return found
