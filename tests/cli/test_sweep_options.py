"""Recipes and options that cannot be: refused by the parser, before anything runs."""

import shlex

import pytest
from bad_input import COMMANDS, Case, bare, cases, filled, in_file, option

from freezetrain.cli import main

RECIPE = in_file(
    dict.fromkeys(COMMANDS, "--config @here/r.yaml")
    | {
        "out": "[train] --out @here/run",
        "group": "[train] --optimization @here/r.yaml",
        "select": "[select] --config @here/r.yaml",
    }
)

RECIPES = """
train | r.yaml | a deep sequence
train | r.yaml | anchors that multiply
score | r.yaml | anchors that multiply
group | r.yaml | anchors that multiply
train | r.yaml | an anchor in itself
compare | r.yaml | =regions: &a {x: *a} | r.yaml
overlap | r.yaml | deep
report | r.yaml | a list
train | r.yaml | words
info | r.yaml | a number
train | r.yaml | no text
ablate | r.yaml | zeros
score | r.yaml | a folder
train | r.yaml | a device
extend | r.yaml | a dangling link
forgetting | r.yaml | a key twice
train | r.yaml | a tag of Python
score | r.yaml | =languages: !boom [zh]
verify | r.yaml | =region: "a
train | r.yaml | =--- {}\\n--- {}
compare | r.yaml | =? [a, b]\\n: 1
train | r.yaml | =1: 2 | 1
train | r.yaml | =weights: {null: 1.0} | weights
train | r.yaml | =optimization: [1] | optimization
train | r.yaml | =optimization: null | optimization
train | r.yaml | =texts: here | texts
score | r.yaml | =model: null | model
score | r.yaml | =model: gpt2 | model
score | r.yaml | =model: {path: null} | model.path
train | r.yaml | =model: {path: 5} | model.path
train | r.yaml | =langauges: [zh] | did you mean 'languages'
train | r.yaml | =optimization: {max_step: 2} | did you mean 'optimization.max_steps'
select | r.yaml | =sequences: 5 | sequences
train | r.yaml | =optimization: {learning_rate: .nan} | learning_rate
train | r.yaml | =optimization: {weight_decay: .inf} | weight_decay
train | r.yaml | =optimization: {weight_decay: 1.0e+999} | weight_decay
score | r.yaml | =batch: 0xfffffffffffffffffffffff
score | r.yaml | =sequences: 2.5 | sequences
score | r.yaml | =sequences: true | sequences
group | r.yaml | =[1]
group | r.yaml | -
out | run/recipe.yaml | anchors that multiply | @here/run
out | run/recipe.yaml | a tag of Python | @here/run
out | run/recipe.yaml | an anchor in itself | @here/run
out | run/recipe.yaml | a list | @here/run
out | run/recipe.yaml | nothing | @here/run
out | run/recipe.yaml | no text | @here/run
out | run/recipe.yaml | a folder | @here/run
out | run/recipe.yaml | =languages: [en] | @here/run
out | run | words | @here/run
out | run | a link to itself | @here/run
"""

WORDS = """
trian |  | did you mean 'train'
TRAIN |  | 'TRAIN'
[/red] |  | [/red]
--model | x | --model
train |  | model.path
paper |  | model.path
score |  | model.path
select |  | scores
overlap |  | regions
convert |  | source
compare |  | train
forgetting |  | base.path
report |  | runs
train | --config @none | config
train | --config @nul | config
train | --config @long | nnnnnnnnnn
"""

OPTIONS = """
quickstart | --nothing 5 | 'nothing'
perturb | --dimension [1] | did you mean 'dimensions'
train | stray | 'stray'
train | --region | --region
train | -region x | -region
train | --model.path.x 5 | model.path.x
train | --weights.zh.x 5 | weights.zh.x
train | --languages '[&a [x,x], *a]' | languages
score | --languages !!python/name:os.system | languages
train | --weights '{zh: 0.5, zh: 0.5}' | weights
train | --model @bytes | model
train | --languages '["@bytes"]' | languages
info | --path @bytes | path
train | --out @bytes | out
score | --model @nul | model
score | --model @newline | model
score | --model @none | model
score | --model @long | nnnnnnnnnn
score | --model a/b/c/d | a/b/c/d
score | --model.revision @nul | revision
verify | --base @none | base
verify | --adapted @nul | adapted
info | --path @none | path
info | --path @long | nnnnnnnnnn
convert | --source @nul | source
report | --runs '["a\\0b"]' | runs
report | --runs [@long] | nnnnnnnnnn
overlap | --regions [@long,@region] | nnnnnnnnnn
select | --scores @nul | scores
select | --scores @long | nnnnnnnnnn
train | --region @long | nnnnnnnnnn
train | --texts @long | nnnnnnnnnn
train | --cache @nul | cache
train | --cache @tokens | @tokens
extend | --tokens @nul | tokens
extend | --tokens @long | nnnnnnnnnn
train | --model ~nobody-here/x | ~nobody-here
score | --out @none | out
rehearse | --k 5000 | k is 5000
rehearse | --k @huge | k
rehearse | --temperature -1 | temperature
rehearse | --from_bos 1.5 | from_bos
rehearse | --languages [ess] | ess
rehearse | --sequence_length 100000 | sequence_length
rehearse | --batch 0 | batch
rehearse | --engine.devices 1000000 | engine.devices
rehearse | --engine.kind zero-3 | engine.kind
rehearse | --prompts a/b/c/d | a/b/c/d
rehearse | --sequences 1000000000000000 | sequences
score | --out @nul | out
info | --out @long | nnnnnnnnnn
info | --out @newline | out
info | --out @tokens | @tokens
info | --out @tokens/x | @tokens
train | --out @base | @base
select | --out @scores | @scores
info | --out /proc/x | /proc/x
info | --out /dev/null | /dev/null
info | --out ~nobody-here/x | ~nobody-here
"""

LANGUAGES = """
score | --languages '["../x"]' --texts.names '{"../x": zh}' | ../x
score | --languages [/x] --texts.names '{/x: zh}' | /x
score | --languages [..] --texts.names '{..: zh}' | ..
score | --languages [@long] --texts.names '{@long: zh}' | nnnnnnnnnn
score | --languages '["a\\\\0b"]' --texts.names '{"a\\\\0b": zh}' | languages
score | --languages '["a\\\\nb"]' --texts.names '{"a\\\\nb": zh}' | languages
score | --languages '[""]' | languages
train | --languages '["../x"]' --texts.names '{"../x": zh}' | ../x
train | --languages [zh,zh] | languages
train | --languages [xx] | xx
train | --languages zh | languages
train | --languages [null] | languages
paper | --languages '["../x"]' --core_languages '["../x"]' | ../x
quickstart | --target xx | xx
quickstart | --score_languages [xx] | xx
perturb | --evaluation.languages [xx] | xx
select | --languages [xx] | xx
"""

NUMBERS = """
train | --optimization.max_steps @huge | max_steps
train | --optimization.max_steps 0 | max_steps
train | --optimization.micro_batch @huge | micro_batch
train | --optimization.micro_batch 1000000000 | micro_batch
train | --optimization.batch_tokens 33 | batch_tokens
train | --optimization.warmup_steps @huge | warmup_steps
train | --optimization.seed -1 | seed
train | --optimization.learning_rate .nan | learning_rate
train | --optimization.weight_decay .inf | weight_decay
train | --optimization.beta2 .nan | beta2
train | --optimization.optimizer lionn | did you mean 'lion'
train | --optimization.optimizer no_room.Optimizer | no_room
train | --optimization.optimizer_args '{lr: 1}' | optimizer_args.lr
train | --optimization.optimizer_args '{epsilon: 1}' | epsilon
train | --optimization.learning_rate_factors '{lm_hed*: 0.5}' | lm_hed
train | --optimization.learning_rate_factors '{a: .inf}' | learning_rate_factors
train | --optimization.layer_decay .nan | layer_decay
train | --optimization.max_hours .inf | max_hours
train | --optimization.spike_factor .nan | spike_factor
train | --optimization.precision 16-mixed | precision
train | --temperature .inf | temperature
train | --average_with_base .nan | average_with_base
train | --penalty.strength .inf | strength
train | --lora.alpha .nan | alpha
train | --lora.rank @huge | rank
train | --replay.share .nan | share
train | --replay.temperature .inf | temperature
train | --weights '{zh: .nan}' | weights
train | --brake.limits '{es: .nan}' | es
train | --texts.test_one_in @huge | test_one_in
train | --workers @huge | workers
train | --checkpoint_every 0 | checkpoint_every
train | --engine.kind zero-4 | engine.kind
train | --engine.deepspeed '{a: 1}' | deepspeed
train | --region @region --freeze.clamp .nan | clamp
train | --region @region --freeze.clamp 1e39 | clamp
train | --freeze.clamp 0 | freeze
train | --watch.off false --watch.at_samples [5,1] | at_samples
score | --batch @huge | batch
score | --sequences -1 | sequences
score | --sequence_length 129 | sequence_length
score | --snapshots [5,1] | snapshots
score | --methods [tailor] | did you mean 'taylor'
score | --model.attention fast | model.attention
score | --engine.kind zero-1 | engine.kind
verify | --clamp .nan | clamp
verify | --clamp .inf | clamp
verify | --rounded_to float32 | rounded_to
perturb | --by .nan | by
perturb | --by .inf | by
perturb | --dimensions [16] | 16
perturb | --dimensions [@huge] | dimensions
perturb | --count -1 | count
perturb | --weights '[{name: nothing, index: [0]}]' | nothing
perturb | --weights '[{name: lm_head.weight, index: [400, 0]}]' | lm_head.weight
perturb | --weights '[{name: lm_head.weight}]' | weights[0].index
perturb | --evaluation.max_length 1 | max_length
ablate | --ratios [.nan] | ratios
ablate | --ratios 0.1 | ratios
ablate | --random_seeds [@huge] | random_seeds
ablate | --prompts '[""]' | prompts
ablate | --new_tokens 0 | new_tokens
paper | --sequences @huge | sequences
paper | --snapshots [@huge] | snapshots
paper | --weights @huge | weights
paper | --scale .nan | scale
paper | --methods [magnitude] | methods
quickstart | --steps @huge | steps
quickstart | --seeds @huge | seeds
quickstart | --ratio .nan | ratio
select | --ratio .nan | ratio
select | --kind corre | did you mean 'core'
extend | --multiple_of @huge | multiple_of
extend | --learn 5 | tokens
compare | --runs_at_once @huge | runs_at_once
compare | --gain .nan | gain
compare | --learning_rates [.nan] | learning_rates
compare | --seeds [@huge] | seed
compare | --variants '{a: {}}' | variants
compare | --variants '{plain: {}, @long: {}}' | variants
compare | --variants '{plain: {}, a: {changes: {langages: [en]}}}' | variants.a
compare | --variants '{plain: {}, a: {changes: {penalty: {fisher: 5}}}}' | variants.a
compare | --regions '{"../a": {kind: random}}' | ../a
compare | --regions '{@long: {kind: random}}' | region
compare | --regions '{a: {kind: random, ratio: .nan}}' | regions.a
compare | --scoring '{methods: boom}' | methods
compare | --scoring '{sequences: x}' | scoring
forgetting | --target xx | xx
forgetting | --models [5] | models[0]
forgetting | --benchmarks.limit 5 | limit
overlap | --names [a] | name
report | --names [a,b] | name
convert | --to papers | did you mean 'paper'
"""


MORE_RECIPES = """
out | run/recipe.yaml | a deep sequence | @here/run
"""

MORE_OPTIONS = """
train | --lora.targets [nothing] | nothing
compare | --regions @deep | regions
verify | --clamp 1e39 | clamp
"""


def launched(key: str, value: str) -> Case:
    told = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
    told |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", "TORCHELASTIC_RUN_ID": "x"}
    return Case("train", "", key, env={**told, key: filled(value, {})})


ENVIRONMENT = """
WORLD_SIZE | many
WORLD_SIZE | -1
RANK | x
"""


@pytest.mark.parametrize("verb", COMMANDS)
def test_the_commands_themselves_are_right(inputs, verb, capsys):
    """So that what is refused below is refused for what a row says."""
    words = [filled(word, inputs.places) for word in shlex.split(COMMANDS[verb])]
    with pytest.raises(SystemExit) as done:
        main([verb, *words, "--print_config"])
    assert done.value.code == 0, capsys.readouterr().err


@pytest.mark.timeout(30)
@pytest.mark.parametrize(
    "case",
    cases(
        (RECIPES, RECIPE),
        (WORDS, bare),
        (OPTIONS, option),
        (LANGUAGES, option),
        (NUMBERS, option),
        (ENVIRONMENT, launched),
    )
    + cases((MORE_RECIPES, RECIPE), (MORE_OPTIONS, option), exhaustive=True),
)
def test_a_recipe_or_an_option_that_cannot_be_is_refused(refuse, case):
    refuse(case)
