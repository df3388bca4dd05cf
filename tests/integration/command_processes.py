"""The programs that run commands for the tests: one that forks, one that only imports what is light."""

# Forks a process for each command from one that has imported all that trains: importing takes seconds.
PRELOADED = """
import json, os, sys
import mmlab.commands.train
from mmlab.cli import main
for line in sys.stdin:
    words, out, err = json.loads(line)
    child = os.fork()
    if child == 0:
        for number, (path, flags) in enumerate(
            [(os.devnull, os.O_RDONLY), (out, os.O_WRONLY | os.O_CREAT), (err, os.O_WRONLY | os.O_CREAT)]
        ):
            os.dup2(os.open(path, flags), number)
        sys.argv = ["mmlab", *words]
        sys.exit(main())
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
LIGHT = """
import contextlib, io, json, sys
from mmlab.cli import main
answers = []
for words in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            status = main(words)
        except SystemExit as leave:
            status = leave.code
    answers.append([status or 0, out.getvalue()])
heavy = sorted({"torch", "lightning", "transformers", "timm", "wandb", "torchvision"} & set(sys.modules))
print(json.dumps([answers, heavy]))
"""
