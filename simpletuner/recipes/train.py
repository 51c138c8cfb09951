"""One training run, read from top to bottom: clips, caches, model, loop, adapter, videos.

This is the only room below the command line that sees the whole configuration; every part gets its
own section. `docs/walk.md` tells the same story with a link per stop.
"""

from __future__ import annotations

from pathlib import Path

from simpletuner.caching.latents import LatentCache
from simpletuner.caching.prompts import PromptCache
from simpletuner.config.run_config import RunConfig
from simpletuner.core.errors import ExitCode, Severity, UserError
from simpletuner.core.files import ensure_writable, sweep
from simpletuner.data.contact_sheet import draw_contact_sheet
from simpletuner.data.sample import Sample
from simpletuner.events.phases import phase
from simpletuner.events.run import Run, open_run
from simpletuner.events.types import (
    Noticed,
    RunFinished,
    RunStarted,
)
from simpletuner.models.adapters.weights_file import BEST_FOLDER
from simpletuner.recipes.bad_files import keep_damaged, without_damaged
from simpletuner.recipes.beginning import begin_training
from simpletuner.recipes.continuing import examine_start, refuse_other_data
from simpletuner.recipes.encode import AutoencoderShelf, fill_caches
from simpletuner.recipes.facts import early_facts, run_facts
from simpletuner.recipes.first_frames import with_first_frames
from simpletuner.recipes.fitting import fit_to_memory
from simpletuner.recipes.further import open_further
from simpletuner.recipes.hardware import watch_hardware
from simpletuner.recipes.kernels import compiler_problems, kernel_problems, product_problems
from simpletuner.recipes.loop import Outcome, run_session
from simpletuner.recipes.plan import RunPlan, plan_run
from simpletuner.recipes.previews import open_previewer
from simpletuner.recipes.publishing import check_publishing
from simpletuner.recipes.resuming import go_on
from simpletuner.recipes.saving import read_best, weights_path
from simpletuner.recipes.session import Session
from simpletuner.recipes.starting import go_on_from_file
from simpletuner.recipes.story import tell_plan, tell_training
from simpletuner.recipes.survey import check_sizes
from simpletuner.runtime.absence import Absence
from simpletuner.runtime.host import Host, allow_tf32, find_host, spare_collections
from simpletuner.runtime.lock import hold_folder
from simpletuner.runtime.signals import listen_to_signals
from simpletuner.training.checkpoint import (
    check_facts,
    delete_broken,
    read_checkpoint,
)
from simpletuner.validation.names import VIDEO_FOLDER
from simpletuner.validation.report import write_report

ADVICE = "Open the report in a browser; a larger max_train_steps trains on from here."


def train_from_config(config: RunConfig, advice: str = ADVICE) -> int:
    """Do the run that `config` describes; returns the exit code.

    Args:
        config: The resolved configuration.
        advice: The last line for the user after a finished run.

    Raises:
        UserError: If something the user can mend is wrong, before or while training.
    """
    folder = Path(config.checkpoint.output_dir)
    host = find_host()
    allow_tf32(not config.precision.disable_tf32)
    name, seed = config.reporting.tracker_run_name, config.schedule.seed
    ensure_writable(folder, "output_dir")
    with (
        hold_folder(folder),
        open_run(
            folder,
            config.as_document(),
            name,
            seed=seed,
            reporting=config.reporting,
            webhooks=config.webhooks,
            places=config.places,
        ) as run,
    ):
        # Not what lies below: another run may be filling a cache there, or live in a sub-folder.
        for own in (folder, folder / VIDEO_FOLDER):
            sweep(own, recursive=False)
        with (
            watch_hardware(host, run.emit),
            listen_to_signals(lambda text: run.emit(Noticed("note", text))) as requests,
        ):
            config, plan = open_plan(config, host, run)
            spare_collections()
            config = with_first_frames(config, plan, run.emit)
            check_publishing(config, run.emit)
            autoencoders = AutoencoderShelf(config, plan, host)
            caches = fill_caches(config, plan, host, run.emit, autoencoders)
            keep_damaged(config, plan.storages, plan.all_samples, plan.found.left_out, "probe", run.emit)
            lost = keep_damaged(config, plan.storages, plan.all_samples, caches[0].left_out, "decode", run.emit)
            usable = without_damaged(filter(caches[0].holds, plan.samples), lost, run.emit)
            session = begin_session(config, plan, caches, usable, autoencoders, host, run)
            try:
                outcome = run_session(session, requests)
            finally:
                session.batches.close()
                session.trainable.close()
                if session.previewer is not None:
                    session.previewer.close()
        run.emit(RunFinished(session.state.step, outcome, _next_words(session, outcome, advice)))
        write_report(folder, title=name)
    return ExitCode.SIGNALLED + requests.signal_number if outcome == "stopped" else ExitCode.OK


def open_plan(config: RunConfig, host: Host, run: Run) -> tuple[RunConfig, RunPlan]:
    """Plan the run, make it fit into memory, prove that the checkpoint fits it, and tell what was found."""
    for problem in config.notices:
        run.emit(Noticed("warning" if problem.severity is Severity.WARNING else "note", str(problem)))
    refuse_kernels(config, host)
    with phase("init_data_backend", run.emit):
        plan = plan_run(config, run.emit)
    run.emit(RunStarted(run.name, str(run.folder), str(plan.checkpoint or "")))
    if (fitted := fit_to_memory(config, plan, host, run.emit)) is not config:
        config = fitted
        run.record(config.as_document())
    if plan.checkpoint is not None:
        check_facts(plan.checkpoint, early_facts(config, plan))
        refuse_other_data(config, plan.samples, read_checkpoint(plan.checkpoint)["batches"])
        if config.checkpoint.delete_invalid_checkpoints and config.checkpoint.resume_from_checkpoint == "latest":
            for path in delete_broken(run.folder, plan.checkpoint):
                run.emit(Noticed("warning", f"'{path}' was damaged and is deleted (delete_invalid_checkpoints)"))
    elif problems := examine_start(config):
        raise UserError.of(problems)
    tell_plan(config, plan, host, run.emit)
    return config, plan


def refuse_kernels(config: RunConfig, host: Host) -> None:
    """Prove that what computes is there.

    Raises:
        UserError: If the attention kernel's package or card, one that multiplies in 8 bits, or a compiler, is missing.
    """
    name = "" if host.device.type == "cpu" else host.device_name
    model, precision = config.model, config.precision.base_model_precision
    found = [
        *kernel_problems(model.attention_mechanism, name, host.capability, "attention_mechanism"),
        *product_problems(precision, name, host.capability, "base_model_precision"),
        *compiler_problems(model.dynamo_backend, host.device.type, "dynamo_backend"),
    ]
    if any(problem.severity is Severity.ERROR for problem in found):
        raise UserError.of(found)


def begin_session(
    config: RunConfig,
    plan: RunPlan,
    caches: tuple[LatentCache, PromptCache],
    usable: tuple[Sample, ...],
    autoencoders: AutoencoderShelf,
    host: Host,
    run: Run,
) -> Session:
    """Bring in the model and put everything where the checkpoint left it; `usable` samples are trained."""
    latents, prompts = caches
    samples = check_sizes(usable, config)
    draw_contact_sheet(samples, plan.storages, run.folder / "contact_sheet.png")
    begun = begin_training(config, plan, caches, samples, host, run.folder, run.emit)
    trainable, state, batches = begun.trainable, begun.state, begun.batches
    if plan.checkpoint is not None:
        with phase("init_resume_checkpoint", run.emit):
            go_on(state, plan.checkpoint, run_facts(config, plan), run.emit)
    elif config.adapter.init_lora is not None:
        go_on_from_file(state, config.adapter, batches, run.emit)
    if warning := state.learning_rate.warning():
        run.emit(Noticed("warning", warning))
    tell_training(config, samples, caches, state, batches, run.emit, begun.kept_bytes)
    previewer = open_previewer(config, plan, host, run, autoencoders, samples, latents.read)
    return Session(
        config, plan, host, run, latents, prompts, autoencoders, trainable, state, batches, begun.objective, previewer,
        # On the CPU there is nowhere to go.
        Absence(trainable.transformer, host.device)
        if config.memory.enable_model_cpu_offload and host.device.type != "cpu"
        else None,
        open_further(config, plan, run.emit),
    )  # fmt: skip


def _next_words(session: Session, outcome: Outcome, advice: str) -> str:
    """Where everything is, and what to do next."""
    folder = session.folder.resolve()
    if outcome == "stopped":
        if session.state.step == 0:
            return "No step was finished. Start the same command again."
        return f"Saved checkpoint-{session.state.step} in {folder}. Start the same command again to go on from there."
    label = "adapter" if session.trainable.adapter.keeps_base else "weights"
    weights = f"{label}  {weights_path(session).resolve()}"
    best = read_best(folder)
    told = () if best is None else (f"best     {folder / BEST_FOLDER} (step {best['step']}, lowest evaluation loss)",)
    return "\n".join((weights, *told, f"report   {folder / 'report.html'}", advice))
