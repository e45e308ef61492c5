"""Live: a camera drives the portrait, for as long as the node runs; and the page that shows it."""

import os
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path

import comfy.model_management
import folder_paths
import numpy as np
import torch
from aiohttp import web
from comfy.cli_args import args
from comfy_api.latest import InputImpl, io, ui
from comfy_execution.graph import ExecutionBlocker
from server import PromptServer
from torch import Tensor

from ..personalive_core import memory
from ..personalive_core.config import PIXELS_PER_LATENT
from ..personalive_core.framing.driving_crop import DrivingCropSettings
from ..personalive_core.live.model import EncodedPortrait, NetworksModel, Report
from ..personalive_core.live.server import HEADERS, LiveServer
from ..personalive_core.live.session import LiveSession, LiveSettings, State
from ..personalive_core.live.tokens import load_tokens
from ..personalive_core.media.pictures import fit_picture
from ..personalive_core.motion.motion_file import load_motion
from ..personalive_core.motion.performance import Strength
from ..personalive_core.sampling.cuda import DecodedFrames, GraphedNetwork, on_stream_after, side_stream
from ..personalive_core.sampling.keyframes import MAX_KEYFRAMES, KeyframeSettings
from ..personalive_core.sampling.reference import reference_features
from ..personalive_core.sampling.schedule import Schedule
from ..personalive_core.sampling.stream import Stream
from ..personalive_core.sampling.window import Denoiser
from . import compat, convert, decode
from .adjust import strength_inputs
from .load import ModelType, PersonaLiveModel
from .motion import MotionType, NodeMotion
from .reference import NodeReference, ReferenceType, encode_reference_stages
from .say import say

STEPS = 4
FOLDER = "live"  # of recordings, in the host's output folder
PREFIX = "/personalive/live"
HOSTS = "PERSONALIVE_HOSTS"  # further names that this computer may be called by, as behind a proxy; by commas


class Live(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PersonaLiveLive",
            display_name="PersonaLive Live",
            category="PersonaLive",
            **compat.search_aliases(
                "webcam, camera, real time, realtime, live portrait, liveportrait, avatar, vtuber, puppet, streaming"
            ),
            description="A camera moves the portrait while this node runs: open the tab 'Live' at the side "
            "and press Start. Stop there ends the run and gives the recording.",
            inputs=[
                ModelType.Input("model", tooltip="From Load PersonaLive Model."),
                io.Vae.Input(
                    "vae", tooltip="The VAE that encoded the reference. A small one, such as TAESD, decodes sooner."
                ),
                io.ClipVision.Input(
                    "clip_vision", tooltip="The image encoder that encoded the reference: for portraits that you drop."
                ),
                ReferenceType.Input("reference", tooltip="From Encode Reference: the portrait to begin with."),
                io.Model.Input(
                    "unet",
                    optional=True,
                    tooltip="The output 'unet' of Load PersonaLive Model, after nodes that load a LoRA or replace "
                    "attention.",
                ),
                *strength_inputs(),
                io.Boolean.Input(
                    "early",
                    default=False,
                    tooltip="Show each frame after three of its four steps: the delay is one window shorter.",
                ),
                io.Boolean.Input(
                    "crop",
                    default=True,
                    tooltip="Follow your head in the camera's picture. Switch it off if the head fills the picture.",
                ),
                io.Boolean.Input(
                    "record",
                    default=True,
                    tooltip=f"Record from Start on: video, sound and motion go to output/{FOLDER}. The page can record "
                    "too.",
                ),
                compat.advanced(
                    io.Int.Input,
                    "keyframes",
                    default=3,
                    min=0,
                    max=MAX_KEYFRAMES,
                    tooltip="How many frames with a new expression are remembered as further references. Each needs "
                    "time in every window.",
                ),
                io.Int.Input(
                    "seed",
                    default=42,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="Seed of the noise.",
                ),
            ],
            outputs=[
                io.Video.Output(display_name="video", tooltip="The last recording, with its sound."),
                MotionType.Output(display_name="motion", tooltip="The motion of the last recording."),
                io.Float.Output(display_name="frame_rate", tooltip="Frames per second of the recorded motion."),
            ],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, **_) -> float:
        return float("nan")  # it equals nothing, so the node runs each time

    @classmethod
    def execute(
        cls,
        model: PersonaLiveModel,
        vae,
        clip_vision,
        reference: NodeReference,
        early: bool,
        crop: bool,
        record: bool,
        keyframes: int,
        seed: int,
        unet=None,
        **strength,
    ) -> io.NodeOutput:
        reference.check_model(model)
        model = model.with_unet(unet)
        session = LiveSession(LiveSettings(crop=DrivingCropSettings() if crop else None, seed=seed))
        session.set(strength=Strength(**strength), early=early)

        def load(report: Report) -> NodeLiveModel:
            loaded = NodeLiveModel(model, vae, clip_vision, reference, keyframes, report)
            say("Open the tab 'Live' at the side and press Start. Stop there ends this run.")
            return loaded

        with _served(session, reference.picture, record):
            session.run(load, _checks(session))
        return _outputs(reference)


class NodeLiveModel(NetworksModel):
    """The host's networks, all on the device if there is room.

    Args:
        model: The networks.
        vae: The host's VAE.
        clip_vision: The host's image encoder.
        reference: The first portrait, which gives the size too.
        keyframes: At most; none where the reference UNet would have to come from the CPU for each.
        report: Is told what is being done.
    """

    def __init__(
        self, model: PersonaLiveModel, vae, clip_vision, reference: NodeReference, keyframes: int, report: Report
    ):
        self.height, self.width = reference.picture.shape[:2]
        self._model, self._vae, self._clip_vision, self._first = model, vae, clip_vision, reference
        report("the networks", 0.0)
        keyframes = keyframes if self._load_all(keyframes) else 0
        networks = {name: model.network(name) for name in model.patchers}
        graphed = [GraphedIfPossible(model.patchers[name]) for name in ("motion_extractor", "motion_encoder")]
        super().__init__(*graphed, model.device)
        self._graphed, self._addresses = graphed, list[int]()
        self._decoder_stream = side_stream(self.device)
        self._denoiser = Denoiser(networks["denoising_unet"], Schedule(STEPS), keyframes)
        self._place()
        report("the first run of each network", 0.5)
        stream = Stream(
            reference.reference,
            denoiser=self._denoiser,
            reference_unet=partial(reference_features, networks["reference_unet"]),
            pose_guider=networks["pose_guider"],
            keyframes=KeyframeSettings(keyframes),
            device=self.device,
        )
        self.prepare(stream)

    def encode(self, picture: np.ndarray) -> Generator[None, None, EncodedPortrait]:
        if picture is self._first.picture:
            return EncodedPortrait(self._first.reference, picture)
        picture = fit_picture(picture, self.width, self.height)
        stages = encode_reference_stages(self._model, self._vae, self._clip_vision, picture)
        while True:
            try:
                next(stages)
            except StopIteration as end:
                return EncodedPortrait(end.value, picture)
            finally:
                self._load()
                self._place()
            yield

    def decode(self, latents: Tensor) -> DecodedFrames:
        with on_stream_after(self._decoder_stream, latents):
            frames = decode.decoded_as_loaded(self._vae, convert.to_host_latents(latents))
            return DecodedFrames(torch.cat(list(frames)))

    def _load_all(self, keyframes: int) -> bool:
        """Loads what windows need, and what keyframes and portraits need too if there is room.

        Returns:
            Whether there is.
        """
        decoder = decode.patcher_of(self._vae)
        self._patchers = [*self._model.patchers.values(), *([decoder] if decoder else [])]
        self._room = self._activations(keyframes)
        self._load()
        comfy.model_management.load_models_gpu([self._vae.patcher, self._clip_vision.patcher], self._room)
        if all(map(compat.is_whole, self._patchers)):
            return True
        self._patchers.remove(self._model.patchers["reference_unet"])
        self._room = self._activations(0)
        self._load()
        if keyframes:
            say("The graphics card has no room for the reference UNet beside the others: Live runs without keyframes.")
        return False

    def _activations(self, keyframes: int) -> int:
        """Bytes for a window and for decoding the one before."""
        latent_size = self.width // PIXELS_PER_LATENT, self.height // PIXELS_PER_LATENT
        window = memory.window(self.width, self.height, self._model.dtype, keyframes)
        return window + memory.decoding(*latent_size, self._vae.vae_dtype)

    def _load(self) -> None:
        compat.load(self._patchers, self._room)

    def _place(self) -> None:
        """After anything that may have moved networks: CUDA graphs of those that have are dropped."""
        addresses = [x.data_ptr() for patcher in self._patchers for x in patcher.model.parameters()]
        if addresses != self._addresses:
            self.wait()  # a window may be under way
            self._addresses = addresses
            self._denoiser.set_capture(compat.can_capture(self._model.patchers["denoising_unet"]))
            for network in self._graphed:
                network.place()


class GraphedIfPossible:
    """Stands in for a network with one input: as CUDA graphs if it may be captured where `place` found it."""

    def __init__(self, patcher):
        self.config, self.get_dtype = patcher.model.config, patcher.model.get_dtype
        self._patcher = patcher
        self._network: Callable = patcher.model

    def place(self) -> None:
        network = self._patcher.model
        self._network = GraphedNetwork(network) if compat.can_capture(self._patcher) else network

    def __call__(self, x: Tensor):
        return self._network(x)


def _checks(session: LiveSession) -> Callable[[], None]:
    """What the session calls all the time: ends it when the user cancels, and says on the node what went wrong."""
    said = ""

    def check() -> None:
        nonlocal said
        comfy.model_management.throw_exception_if_processing_interrupted()
        if session.state is State.ERROR and session.message != said:
            said = session.message
            say(said)

    return check


@contextmanager
def _served(session: LiveSession, portrait: np.ndarray, record: bool) -> Iterator[None]:
    """Shows the session on the page. What is recorded is complete at the end, however that comes."""
    session.set_portrait(portrait)
    live_server().attach(session, (portrait.shape[1], portrait.shape[0]))
    try:
        live_server().record(record)
        yield
    finally:
        live_server().detach()


def _outputs(reference: NodeReference) -> io.NodeOutput:
    """The last recording."""
    recorded = live_server().recorded
    if not (recorded and recorded["name"] and recorded["motion"]):
        say(recorded["text"] if recorded else "Nothing was recorded, so nothing comes out of Live.")
        return io.NodeOutput(*[ExecutionBlocker(None)] * 3)
    say(f"{recorded['text']} It is in output/{FOLDER}.")
    folder = recordings_folder()
    performance = load_motion(folder / recorded["motion"]).at_constant_rate()
    return io.NodeOutput(
        InputImpl.VideoFromFile(str(folder / recorded["name"])),
        NodeMotion(performance, reference.reference.motion, []),
        float(performance.frame_rate),
        ui=ui.PreviewVideo([ui.SavedResult(recorded["name"], FOLDER, io.FolderType.output)]),
    )


def recordings_folder() -> Path:
    return Path(folder_paths.get_output_directory(), FOLDER)


@cache
def live_server() -> LiveServer:
    """One for the host's life: pages outlive the runs of the node."""
    driver_token, viewer_token = load_tokens(Path(folder_paths.get_user_directory(), "__personalive"))
    server = LiveServer(
        driver_token=driver_token,
        viewer_token=viewer_token,
        recordings=recordings_folder(),
        allowed_hosts=[*args.listen.split(","), *filter(None, os.environ.get(HOSTS, "").split(","))],
    )
    server.waiting_jobs = lambda: len(PromptServer.instance.prompt_queue.queue)
    return server


def add_routes() -> None:
    """Adds the page to the host, while it loads its nodes."""
    PromptServer.instance.app.on_response_prepare.append(_keep_headers)
    routes = PromptServer.instance.routes
    routes.post(f"{PREFIX}/token")(_hand_token)
    for route in live_server().routes(PREFIX):
        routes.route(route.method, route.path)(route.handler)  # the host's copy of it under /api takes no options


async def _hand_token(request: web.Request) -> web.Response:
    """The sidebar's tab asks for it; to pages of other sites it is not given."""
    live_server().check_origin(request)
    return web.json_response({"token": live_server().driver_token})


async def _keep_headers(request: web.Request, response: web.StreamResponse) -> None:
    """Under --disable-api-nodes the host replaces our page's policy by its own, which lets no video file be played."""
    if request.path.removeprefix("/api").startswith(f"{PREFIX}/"):
        response.headers.update(HEADERS)
