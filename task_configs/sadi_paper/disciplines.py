"""MMLU's subjects by discipline, as its authors group them (Hendrycks et al., ICLR 2021)."""

from __future__ import annotations

import functools

import datasets

SUBJECTS = {
    "humanities": """
        formal_logic high_school_european_history high_school_us_history
        high_school_world_history international_law jurisprudence logical_fallacies
        moral_disputes moral_scenarios philosophy prehistory professional_law world_religions
    """.split(),
    "social_sciences": """
        econometrics high_school_geography high_school_government_and_politics
        high_school_macroeconomics high_school_microeconomics high_school_psychology
        human_sexuality professional_psychology public_relations security_studies sociology
        us_foreign_policy
    """.split(),
    "stem": """
        abstract_algebra anatomy astronomy college_biology college_chemistry
        college_computer_science college_mathematics college_physics computer_security
        conceptual_physics electrical_engineering elementary_mathematics high_school_biology
        high_school_chemistry high_school_computer_science high_school_mathematics
        high_school_physics high_school_statistics machine_learning
    """.split(),
    "other": """
        business_ethics clinical_knowledge college_medicine global_facts human_aging management
        marketing medical_genetics miscellaneous nutrition professional_accounting
        professional_medicine virology
    """.split(),
}


def _of(discipline: str, rows: datasets.Dataset) -> datasets.Dataset:
    """The rows of a discipline's subjects, in their order."""
    wanted = frozenset(SUBJECTS[discipline])
    return rows.filter(lambda subject: subject in wanted, input_columns="subject")


humanities = functools.partial(_of, "humanities")
social_sciences = functools.partial(_of, "social_sciences")
stem = functools.partial(_of, "stem")
other = functools.partial(_of, "other")
