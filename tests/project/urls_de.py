from .urls import urlpatterns as urlpatterns
