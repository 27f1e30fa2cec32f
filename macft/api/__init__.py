"""Everything macft can do, as functions: what the command line and the studio both call.

The rule: nothing here loads MLX or transformers on import; heavy rooms are imported inside the functions that need
them.
"""

from typing import TYPE_CHECKING

from macft.api.data import advise, check_data, check_rows, clean_rows, mix_rows, show_row, split_rows, start_rows
from macft.api.models import (
    add_adapter,
    describe_adapter,
    discard_adapter,
    forget_adapter,
    list_adapters,
    list_models,
    pull,
    restore_adapter,
    start_pull,
)
from macft.api.planning import bench, fit, plan, read_recipe
from macft.api.results import export, fuse, merge, plan_export, plan_fuse, plan_merge, start_merge
from macft.api.runs import (
    HANG_UP,
    INTERRUPT,
    QUIT,
    TERMINATE,
    RunSummary,
    discard_run,
    follow,
    forget_run,
    launch,
    other_rank,
    remove_run,
    report,
    restore_run,
    resume,
    send_signal,
    start,
    stop,
    summarize_runs,
    take_part,
    write_note,
)
from macft.api.voices import (
    compare,
    evaluate,
    open_chat,
    open_server,
    read_prompts,
    replay,
    start_server,
    worker_command,
)

if TYPE_CHECKING:
    from macft.jobs.estimate import JobEstimate
    from macft.models.adapter_facts import AdapterFacts
    from macft.models.describe import ModelFacts

__all__ = [
    "HANG_UP",
    "INTERRUPT",
    "QUIT",
    "TERMINATE",
    "AdapterFacts",
    "JobEstimate",
    "ModelFacts",
    "RunSummary",
    "add_adapter",
    "advise",
    "bench",
    "check_data",
    "check_rows",
    "clean_rows",
    "compare",
    "describe_adapter",
    "discard_adapter",
    "discard_run",
    "evaluate",
    "export",
    "fit",
    "follow",
    "forget_adapter",
    "forget_run",
    "fuse",
    "launch",
    "list_adapters",
    "list_models",
    "merge",
    "mix_rows",
    "open_chat",
    "open_server",
    "other_rank",
    "plan",
    "plan_export",
    "plan_fuse",
    "plan_merge",
    "pull",
    "read_prompts",
    "read_recipe",
    "remove_run",
    "replay",
    "report",
    "restore_adapter",
    "restore_run",
    "resume",
    "send_signal",
    "show_row",
    "split_rows",
    "start",
    "start_merge",
    "start_pull",
    "start_rows",
    "start_server",
    "stop",
    "summarize_runs",
    "take_part",
    "worker_command",
    "write_note",
]
