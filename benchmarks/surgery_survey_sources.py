"""Where the models of the surveys come from."""

from __future__ import annotations

import surgery_survey_models as models
import surgery_survey_transformers

SOURCES = {
    "own": models.own_models,
    "haiku": models.haiku_models,
    "flaxmodels": models.flaxmodels_models,
    "equimo": models.equimo_models,
    "transformers": surgery_survey_transformers.transformers_models,
}
