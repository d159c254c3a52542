"""The commands that make the shipped drafts."""

from __future__ import annotations

from pathlib import Path

from specdec_lib.cli.commands import Options, command, folder


@command(folder("--workdir", Path("outputs/draft"), "where corpus and drafts go, several GB"))
def draft(options: Options) -> int:
    """Distil the shipped drafts from nothing, in a few hours on 2 cores.

    The embedded target writes a corpus, and both drafts are trained on it. An interrupted run goes on where it stopped.
    """
    import logging

    from specdec_lib.distill.make import FEATURE_LAYERS, make_drafts
    from specdec_lib.models.pair import load_embedded_target

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    make_drafts(options.workdir, *load_embedded_target(feature_layers=FEATURE_LAYERS))
    return 0


@command(folder("--folder", Path("outputs/draft-export"), "where to write it"))
def draft_export(options: Options) -> int:
    """Write the plain draft as an ordinary Hugging Face checkpoint.

    With its tokenizer, so that from_pretrained can load it.
    """
    from specdec_lib.models.pair import DRAFTS_FOLDER, EMBEDDED_DRAFTS, load_embedded_target
    from specdec_lib.models.plain_draft import export_plain_draft

    target, tokenizer = load_embedded_target()
    export_plain_draft(DRAFTS_FOLDER / EMBEDDED_DRAFTS["smollm2-135m-embedded-plain"], options.folder, target)
    tokenizer.save_pretrained(options.folder)
    print(f"checkpoint: {options.folder.resolve()}")
    return 0
