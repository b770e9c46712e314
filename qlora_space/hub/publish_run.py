"""From a run folder to the user's Hub repository: check what is asked for, write card and record, push, verify."""

import contextlib
import logging
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from qlora_space.core.errors import (
    DiskFull,
    HubUnavailable,
    NotSignedIn,
    QloraSpaceError,
    RunError,
)
from qlora_space.core.proof import Proof
from qlora_space.hub.account import full_name_to_publish
from qlora_space.hub.adapter_files import ADAPTER_FILES, refuse_not_finite
from qlora_space.hub.card.loss_chart import loss_chart
from qlora_space.hub.card.model_card import AtStep, model_card
from qlora_space.hub.demo_space import demo_of, publish_demo
from qlora_space.hub.publish import Published, PushOptions, publish_adapter
from qlora_space.hub.publish_export import export_to_publish, publish_export
from qlora_space.hub.record import record_json
from qlora_space.hub.target import read_target, repo_type_of
from qlora_space.plan import Plan
from qlora_space.runs import Publication, PushRequest, Report, RunFolder, UnsentPush, view_of
from qlora_space.runs.export import export_for_16_bit
from qlora_space.runs.proofs import add_proof, proof_of
from qlora_space.runs.pushing import one_push

_log = logging.getLogger(__name__)


def publish_run(
    run: RunFolder, push: PushRequest, token: str | None, *, is_kept: bool = True
) -> Published:
    """Push the finished adapter, an export or a demo Space as one commit, verify it, and note it in the run folder.

    The run folder holds it as unsent until it is done, unless it is not to be kept.
    Raises RunError if there is nothing to publish in this way or it is being published, HubError if that is damaged or
    not finite, or the Hub refuses; Conflict if somebody changed there what it would replace.
    """
    with one_push(run):
        report = _checked(run, push)
        kept = _kept_until_done(run, push) if is_kept else nullcontext(PushOptions(push.replace))
        with kept as options:
            published = _push(run, push, report, token, options)
        with contextlib.suppress(DiskFull):  # it is published all the same
            run.add_publication(_noted(published, push))
    return published


def _checked(run: RunFolder, push: PushRequest) -> Report:
    """Raises RunError or HubError if it cannot be published in this way: nor can it later, if it waits to be sent."""
    try:
        report = run.report()
        if not run.has_adapter or report is None:
            raise RunError(
                "This run has no finished adapter.",
                "Wait until it is done, or stop it and keep the adapter.",
            )
        refuse_not_finite(run.adapter_folder / ADAPTER_FILES[0])
        match push.what:
            case "adapter":
                _refuse_variant(run, run.plan(), push)
            case "demo-space":
                demo_of(run, push.hardware)
            case _:
                export_to_publish(run, push)
        return report
    except QloraSpaceError as error:
        unsent = run.unsent_push()
        if unsent and unsent.request == push:
            failed = {"why": str(error), "is_refused": True}
            _keep(run, unsent.model_copy(update=failed))
        raise


def _push(
    run: RunFolder, push: PushRequest, report: Report, token: str | None, options: PushOptions
) -> Published:
    if "/" not in push.repo:  # the card names it whole
        name = full_name_to_publish(push.repo, token, repo_type_of(push.what))
        push = push.model_copy(update={"repo": name})
    match push.what:
        case "adapter":
            return _push_adapter(run, push, report, token, options)
        case "demo-space":
            return publish_demo(run, push, token, options)
        case _:
            return publish_export(run, push, report, token, options)


def _push_adapter(
    run: RunFolder, push: PushRequest, report: Report, token: str | None, options: PushOptions
) -> Published:
    request, plan, view = run.request(), run.plan(), view_of(run)
    variant = {"for_16_bit": push.for_16_bit, "with_base": push.with_base}
    held_out = view.series("eval_loss")
    chart = loss_chart(view.series("loss"), held_out)
    checkpoint = push.step and AtStep(push.step, dict(held_out).get(push.step))
    card = model_card(
        plan,
        report,
        request,
        view.series("loss"),
        push.repo,
        **variant,
        checkpoint=checkpoint or None,
        has_chart=bool(chart),
        proof=_proof_of_last(run, push),
    )
    return publish_adapter(
        _folder_of(run, push),
        card=card,
        record=record_json(run, request, plan, report, push),
        repo=push.repo,
        private=push.private,
        token=token,
        run_id=run.id,
        packed_base=run.packed_folder if push.with_base else None,
        chart=chart,
        options=options,
    )


def _proof_of_last(run: RunFolder, push: PushRequest) -> Proof | None:
    """Of the newest commit there, if that has the adapter that is pushed now, published in the same way."""
    last = next((p for p in reversed(run.publications()) if p.repo == push.repo), None)
    proof = proof_of(run, last.commit) if last else None
    if last is None or proof is None:
        return None
    weights = run.adapter_after(push.step) / ADAPTER_FILES[0]
    is_same = (proof.for_16_bit, proof.with_base, proof.step) == (
        push.for_16_bit,
        push.with_base,
        push.step,
    )
    return proof if is_same and weights.stat().st_mtime < last.time else None


@contextmanager
def _kept_until_done(run: RunFolder, push: PushRequest) -> Iterator[PushOptions]:
    """The run folder holds the push until it is done, with why it failed. One to another repository that waited before
    waits on, unless this one has to wait too."""
    before = run.unsent_push()
    is_same = before is not None and _place_of(before.request) == _place_of(push)
    other = None if is_same else before
    if other and other.request.what == "adapter" and push.what != "adapter":
        # The adapter is what a run is for: nothing else takes its place in the file.
        yield PushOptions(push.replace, hardware=push.hardware)
        return
    unsent = UnsentPush(request=push, tried_at=time.time())
    if before and is_same:
        unsent = unsent.model_copy(
            update={"was_created": before.was_created, "tries": before.tries + 1}
        )
    _keep(run, unsent)

    def note_created(was_created: bool) -> None:
        _keep(run, unsent.model_copy(update={"was_created": was_created}))

    options = PushOptions(push.replace, unsent.was_created, push.hardware, note_created)
    try:
        yield options
    except QloraSpaceError as error:
        is_refused = not isinstance(error, HubUnavailable | NotSignedIn)
        failed = {"why": str(error), "is_refused": is_refused}
        if is_refused and other:
            _keep(run, other)
        elif is_refused and push.what != "adapter":
            run.forget_unsent_push()
        elif kept := run.unsent_push():  # else a person did not want it any more
            _keep(run, kept.model_copy(update=failed))
        raise
    run.forget_unsent_push()
    if other:
        _keep(run, other)


def _place_of(push: PushRequest) -> tuple[str, str]:
    """A Space may have the name of a model, and an export that of an adapter, which it does not replace."""
    return push.repo, push.what


def _keep(run: RunFolder, unsent: UnsentPush) -> None:
    with contextlib.suppress(DiskFull):  # it is sent all the same
        run.keep_unsent_push(unsent)


def _noted(published: Published, push: PushRequest) -> Publication:
    return Publication(
        repo=published.repo,
        url=published.url,
        commit=published.commit,
        num_files=published.num_files,
        created=published.created,
        time=time.time(),
        step=push.step,
        stayed_private=published.stayed_private,
        what=push.what,
        for_16_bit=push.for_16_bit,
        notes=published.notes,
    )


def _refuse_variant(run: RunFolder, plan: Plan, push: PushRequest) -> None:
    """Raises RunError if this adapter cannot be published in this way."""
    for_16_bit, with_base = push.for_16_bit, push.with_base
    if push.step is not None:
        run.adapter_after(push.step)
        if for_16_bit:
            raise RunError(
                f"The checkpoint of step {push.step} is published as it is.",
                "For the 16-bit base publish the run's adapter.",
            )
    if for_16_bit and with_base:
        raise RunError(
            "An adapter for the 16-bit base does not need the packed one.", "Ask for one of them."
        )
    if with_base and not (plan.is_low_bit and run.has_packed_base):
        raise _no_packed_base(plan)
    if for_16_bit and not plan.is_low_bit:
        raise RunError(
            f"This adapter was trained on a {plan.bits}-bit base that it does not repair.",
            "Publish it as it is.",
        )
    if plan.base_is_own and not (for_16_bit or with_base):
        raise RunError(
            "This base was rounded with the help of the calibration text, so no recipe packs it again.",
            "Publish the packed base with the adapter, or publish for the 16-bit base.",
        )


def _no_packed_base(plan: Plan) -> RunError:
    why = "its folder is gone" if plan.is_low_bit else "this run has none"
    hint = "Train again." if plan.base_is_own else "Publish the adapter without it."
    return RunError(f"There is no packed base to publish: {why}.", hint)


def _folder_of(run: RunFolder, push: PushRequest) -> Path:
    """With the files of the adapter that was asked for."""
    if push.step is not None:
        return _checkpoint(run, push.step)
    return _exported(run) if push.for_16_bit else run.adapter_folder


def _exported(run: RunFolder) -> Path:
    folder = run.path / "for_16_bit"
    export_for_16_bit(run, folder)
    return folder


def _checkpoint(run: RunFolder, step: int) -> Path:
    """The run's adapter with the weights of that step: a checkpoint has no tokenizer."""
    source, folder = run.adapter_after(step), run.path / "published_step"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        shutil.copytree(run.adapter_folder, folder)
        shutil.copyfile(source / ADAPTER_FILES[0], folder / ADAPTER_FILES[0])
    except FileNotFoundError:  # training goes on, and has deleted it
        raise RunError(f"The checkpoint of step {step} is gone.", "Choose another one.") from None
    return folder


def kept_proof(run: RunFolder, proof: Proof, token: str | None) -> Proof:
    """Keep it with the run. A good one is put into the card too, by one more push whose other files are the same by
    their hashes: returned is the proof of that commit. A card without it takes nothing from the proof."""
    add_proof(run, proof)
    if not proof.is_proved:
        return proof
    try:
        target = read_target(proof.repo, run.id, token)
        if target.state != "ours":  # deleted meanwhile: it is not to be made anew
            return proof
        push = PushRequest(
            repo=proof.repo,
            private=target.is_private,
            for_16_bit=proof.for_16_bit,
            with_base=proof.with_base,
            step=proof.step,
        )
        done = publish_run(run, push, token, is_kept=False)
    except QloraSpaceError as error:
        _log.warning("The card of %s has no proof: %s", proof.repo, error)
        return proof
    in_card = proof.model_copy(update={"commit": done.commit})
    add_proof(run, in_card)
    return in_card
