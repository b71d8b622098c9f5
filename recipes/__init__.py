"""The command `supernet`. A verb is an entry: its name, and the function "module:function" that does it."""

VERBS = {
    "recipes": "recipes.recipes:recipes",
    "prepare": "recipes.prepare:prepare",
    "devices": "recipes.devices:devices",
    "measure": "recipes.measure:measure",
    "specialize": "recipes.specialize:specialize",
    "export": "recipes.export:export",
    "evaluate": "recipes.evaluate:evaluate",
    "bleu": "recipes.bleu:bleu",
    "records": "recipes.records:records",
}
