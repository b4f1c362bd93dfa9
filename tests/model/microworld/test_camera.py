import numpy as np
import pytest
import torch

from model.microworld.camera import (
    matching_pinhole,
    orbit_angles,
    orbit_pose,
    quaternion_from_rotation,
    rotation_from_quaternion,
    view_rotation,
)

ANGLES = [(0.0, 0.0), (0.7, 0.3), (-0.9, 0.5), (2.5, -0.4), (3.1, 1.2)]


@pytest.mark.parametrize(("yaw", "pitch"), ANGLES)
def test_pose_round_trip(yaw: float, pitch: float) -> None:
    pose = orbit_pose(yaw, pitch)
    assert np.allclose(pose.rotation @ pose.rotation.T, np.eye(3), atol=1e-12)
    assert np.isclose(np.linalg.det(pose.rotation), 1)
    assert np.allclose(orbit_angles(pose), (yaw, pitch))
    assert np.allclose(rotation_from_quaternion(pose.quaternion), pose.rotation, atol=1e-9)


@pytest.mark.parametrize(("yaw", "pitch"), ANGLES)
def test_the_camera_looks_at_the_object(yaw: float, pitch: float) -> None:
    pose = orbit_pose(yaw, pitch, distance=5)
    origin = pose.rotation @ np.zeros(3) + pose.translation
    assert np.allclose(origin, [0, 0, 5])
    assert np.isclose(np.linalg.norm(pose.centre), 5)
    assert (pose.centre[1] > 0) == (pitch > 0)  # a positive pitch looks down


def test_half_turns_have_a_quaternion() -> None:
    for axis in range(3):
        rotation = -np.eye(3)
        rotation[axis, axis] = 1
        assert np.allclose(rotation_from_quaternion(quaternion_from_rotation(rotation)), rotation)


def test_the_pinhole_agrees_with_the_orthographic_frame() -> None:
    points = np.random.default_rng(0).uniform(-0.7, 0.7, (100, 3))
    pose, pinhole = orbit_pose(0.5, 0.3), matching_pinhole(64, 27.0)
    camera = points @ pose.rotation.T + pose.translation
    projected = pinhole.focal * camera[:, :2] / camera[:, 2:] + pinhole.cx
    axes = view_rotation(torch.tensor([0.5]), torch.tensor([0.3]))[0].double().numpy()
    orthographic = 32 + 27.0 * np.stack([points @ axes[0], -points @ axes[1]], 1)
    assert np.abs(projected - orthographic).max() < 0.3  # pixels
