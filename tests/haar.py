"""A cascade made by hand in the format of OpenCV's files, which finds the face that face.py draws."""

from pathlib import Path

WINDOW = 20
# Rectangles x, y, width, height, weight. Found by a search over random ones.
FEATURES = [
    [(0, 5, 15, 3, 1), (2, 5, 13, 2, -1.7308)],
    [(13, 10, 6, 10, 1), (13, 10, 6, 6, -1.6667)],
    [(10, 0, 9, 6, 1), (11, 4, 7, 2, -3.8571)],
    [(2, 1, 15, 4, 1), (7, 1, 8, 3, -2.5)],
    [(0, 2, 10, 3, -1), (0, 3, 3, 1, 10)],
    [(16, 5, 4, 14, 1), (16, 9, 4, 2, -7)],
    [(4, 4, 13, 6, 1), (7, 4, 5, 2, -7.8)],
]
# Stages of stumps: their feature and threshold.
STAGES = [[(0, 0.04)], [(1, 0.017)], [(2, 0.072), (3, 0.035)], [(4, 0.095), (5, 0.044), (6, 0.1)]]


def write_cascade(path: Path) -> Path:
    stages = "".join(
        f"""<_><maxWeakCount>{len(stumps)}</maxWeakCount><stageThreshold>{len(stumps) - 0.5}</stageThreshold>
        <weakClassifiers>{
            "".join(
                f"<_><internalNodes>0 -1 {feature} {threshold}</internalNodes><leafValues>0. 1.</leafValues></_>"
                for feature, threshold in stumps
            )
        }</weakClassifiers></_>"""
        for stumps in STAGES
    )
    features = "".join(
        f"<_><rects>{''.join(f'<_>{x} {y} {w} {h} {weight}</_>' for x, y, w, h, weight in rects)}</rects></_>"
        for rects in FEATURES
    )
    path.write_text(
        f"""<?xml version="1.0"?><opencv_storage><cascade type_id="opencv-cascade-classifier">
        <stageType>BOOST</stageType><featureType>HAAR</featureType><height>{WINDOW}</height><width>{WINDOW}</width>
        <stageParams><maxWeakCount>3</maxWeakCount></stageParams>
        <featureParams><maxCatCount>0</maxCatCount></featureParams><stageNum>{len(STAGES)}</stageNum><stages>{stages}</stages><features>{features}</features>
        </cascade></opencv_storage>"""
    )
    return path
