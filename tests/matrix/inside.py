"""Run by the interpreter of an environment: print as JSON what its Airflow sees of the wheel. It imports nothing of the tests."""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from importlib.util import find_spec

HEAVY = ("tensorflow", "keras", "cv2", "faiss", "imagehash", "obstore", "pyarrow", "matplotlib", "scipy", "sklearn", "numpy")


def main() -> None:
    """Import the DAGs, the plugin and the trigger, send a metric, and list the pages' routes."""
    from airflow import plugins_manager

    try:
        from airflow.dag_processing.dagbag import DagBag
    except ImportError:  # 3.1
        from airflow.models.dagbag import DagBag
    try:
        plugins, errors = plugins_manager._get_plugins()
    except AttributeError:  # 3.1
        plugins_manager.ensure_plugins_loaded()
        plugins, errors = plugins_manager.plugins, plugins_manager.import_errors
    from bcc_ops import metrics
    from bcc_ops.triggers import new_images

    with metrics.stage("look"):  # Airflow's metrics have been in three places
        metrics.new_images({"images": 1, "change": None})
    bag = DagBag(sys.argv[1])
    apps = [app["app"] for plugin in plugins if plugin.name == "bcc" for app in plugin.fastapi_apps]
    seen = {
        "airflow": version("apache-airflow"),
        "amazon": version("apache-airflow-providers-amazon"),
        "python": "{}.{}.{}".format(*sys.version_info[:3]),
        "dags": sorted(bag.dags),
        "problems": [*bag.import_errors.values(), *errors.values()],
        "routes": [route.path for app in apps for route in app.routes],
        "trigger": new_images.NewImagesTrigger.__name__,
        "heavy_installed": [name for name in HEAVY if find_spec(name)],
        "heavy_imported": [name for name in HEAVY if name in sys.modules],
    }
    print("\n" + json.dumps(seen))


if __name__ == "__main__":
    main()
